// AVX2: vpmaddubsw multiplies 32 weights.
#if defined(__x86_64__)
#include <immintrin.h>

#include "levels.h"
#include "rounding.h"
#include "targets.h"

PPLEX_BEGIN_TARGET("avx2,fma,f16c")

namespace pplex {
namespace {

static inline __m256i four_of(const int8_t* x);

// The products of a part are at most 8 * 2 * 15 * 127 = 30,480: they are added in 16 bits.
static inline __m256i add_dots(__m256i sum, const __m256i* weights, const int8_t* x) {
  __m256i pairs = _mm256_maddubs_epi16(weights[0], four_of(x));
  for (int j = 1; j < 8; ++j) pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[j], four_of(x + 4 * j)));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

// Weights of 8 bits are two of 4: the instruction would cut off their sums.
static inline __m256i add_wide_dots(__m256i sum, const __m256i* weights, const int8_t* x) {
  const __m256i low = _mm256_set1_epi8(15);
  __m256i lower[8], upper[8];
  for (int j = 0; j < 8; ++j) {
    lower[j] = _mm256_and_si256(weights[j], low);
    upper[j] = _mm256_and_si256(_mm256_srli_epi16(weights[j], 4), low);
  }
  return add_dots(_mm256_add_epi32(sum, _mm256_slli_epi32(add_dots(_mm256_setzero_si256(), upper, x), 4)), lower, x);
}

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

bool runs_here() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma"); }

}  // namespace

const Level kAvx2 = {"avx2", kRows, 1, runs_here, prepare, round, multiply, attend, attend_steps};

}  // namespace pplex
#endif
