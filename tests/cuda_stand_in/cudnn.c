/* Of cuDNN, what gives something back; what only answers that it went well is generated (build.py).
 *
 * The graph API asks which engines can compute a graph (one can), what there is to know of it (nothing), and executes it. */
#include <stdint.h>
#include <stdlib.h>

#include "events.h"

enum { INT64 = 3, INT32 = 23 };                      /* cudnnBackendAttributeType_t */
enum { HEURISTICS_RESULTS = 202, CONFIG_ENGINE = 300 }; /* cudnnBackendAttributeName_t */

int cudnnCreate(void **handle)
{
    *handle = malloc(1);
    return 0;
}

int cudnnDestroy(void *handle)
{
    free(handle);
    return 0;
}

size_t cudnnGetVersion(void)
{
    return 91000;
}

const char *cudnnGetErrorString(int status)
{
    return "a status of the stand-in";
}

void cudnnGetLastErrorString(char *message, size_t room)
{
    *message = 0;
}

int cudnnBackendCreateDescriptor(int type, void **made)
{
    *made = malloc(1);
    return 0;
}

int cudnnBackendDestroyDescriptor(void *descriptor)
{
    free(descriptor);
    return 0;
}

int cudnnBackendFinalize(void *descriptor)
{
    return 0;
}

/* Descriptors are made by the caller, who is told how many of them there are; numbers are sizes of what is needed. */
int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t room, int64_t *count, void *values)
{
    if (count)
        *count = name == HEURISTICS_RESULTS || name == CONFIG_ENGINE || type == INT64 || type == INT32;
    if (values && type == INT64)
        *(int64_t *)values = 0;
    if (values && type == INT32)
        *(int32_t *)values = 0;
    return 0;
}
