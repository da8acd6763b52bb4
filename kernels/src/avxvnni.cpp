// AVX-VNNI, for processors with vpdpbusd but without AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include "levels.h"
#include "rounding.h"
#include "targets.h"

PPLEX_BEGIN_TARGET("avx2,fma,f16c,avxvnni")

namespace pplex {
namespace {

static inline __m256i four_of(const int8_t* x);

static inline __m256i add_dots(__m256i sum, const __m256i* weights, const int8_t* x) {
  for (int j = 0; j < 8; ++j) sum = _mm256_dpbusd_avx_epi32(sum, weights[j], four_of(x + 4 * j));
  return sum;
}

static inline __m256i add_wide_dots(__m256i sum, const __m256i* weights, const int8_t* x) { return add_dots(sum, weights, x); }

}  // namespace
}  // namespace pplex

#include "avx256.h"
#include "lanes_avx256.h"

#include "exponential.h"

#include "attention_head.h"
#include "prologue.h"

PPLEX_END_TARGET

namespace pplex {
namespace {

bool runs_here() { return __builtin_cpu_supports("avxvnni") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma"); }

}  // namespace

const Level kAvxVnni = {"avxvnni", kRows, 1, runs_here, prepare, round, multiply, attend, attend_steps};

}  // namespace pplex
#endif
