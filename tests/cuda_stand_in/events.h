/* What the stand-ins write down of the calls they get: see cudart.c, which keeps it, and process.py, which reads it. */
#include <stddef.h>

/* HOST is a copy from the host's memory that is captured, so that it is read there again, whatever is there then. */
enum kind { KERNEL, LIBRARY, COPY, CAPTURE, REPLAY, MEMORY, WAIT, REFUSED, HOST };

struct event {
    enum kind kind;
    int captured; /* into a CUDA graph, so that nothing ran */
    const char *name;
};

/* Writes down a call on `stream`; `name` must stay where it is. */
void stand_in_note(enum kind kind, const char *name, const void *stream);

/* As stand_in_note, for libraries, whose streams are not followed: the one that is captured, if one is. */
int stand_in_call(const char *name);

/* All events since the last stand_in_forget; valid until the next call of anything here. */
const struct event *stand_in_events(size_t *count);
void stand_in_forget(void);
