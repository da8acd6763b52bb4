// The levels of instructions, and the one in use.
#pragma once

#include "layout.h"

namespace pplex {

extern const Level kPortable;
#if defined(__x86_64__)
extern const Level kAvx2, kAvxVnni, kAvx512Vnni;
#elif defined(__aarch64__)
extern const Level kNeonDot;
#endif

// The fastest level that this processor runs, or the one that `use_level` chose.
const Level& level();

// The level `name`, or the fastest for "auto". Returns false, and changes nothing, if this processor does not run it.
bool use_level(const char* name);

// Names of the levels that this processor runs, the fastest first, separated by commas.
const char* level_names();

}  // namespace pplex
