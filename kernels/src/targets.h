// Compiles the rest of a file for more instructions than the library's base: one library has every level.
//
// Include all headers before: an inline function of a header, compiled with these instructions, could replace the base's.
#pragma once

#if defined(__clang__)
#define PPLEX_PRAGMA(text) _Pragma(#text)
#define PPLEX_BEGIN_TARGET(names) PPLEX_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define PPLEX_END_TARGET _Pragma("clang attribute pop")
#else
#define PPLEX_PRAGMA(text) _Pragma(#text)
#define PPLEX_BEGIN_TARGET(names) _Pragma("GCC push_options") PPLEX_PRAGMA(GCC target(names))
#define PPLEX_END_TARGET _Pragma("GCC pop_options")
#endif
