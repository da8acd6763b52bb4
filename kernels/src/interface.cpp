// Functions for Python: which level of instructions is used. `pplex.kernels` calls them with ctypes.
#include "levels.h"

#define PPLEX_EXPORT extern "C" __attribute__((visibility("default")))

PPLEX_EXPORT const char* pplex_levels() { return pplex::level_names(); }

PPLEX_EXPORT const char* pplex_level() { return pplex::level().name; }

PPLEX_EXPORT int pplex_use_level(const char* name) { return pplex::use_level(name); }
