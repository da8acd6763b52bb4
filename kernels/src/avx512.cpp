// AVX-512 with VNNI: vpdpbusd multiplies 64 weights.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own header: undefined registers
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include "levels.h"
#include "rounding.h"
#include "targets.h"

PPLEX_BEGIN_TARGET("avx512f,fma,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")

#include "lanes_avx512.h"

#include "exponential.h"

#include "attention_head.h"
#include "prologue.h"

namespace pplex {
namespace {

constexpr int kRows = 4;    // of a tile
constexpr int kGroups = 2;  // that share a load of the rows' numbers, which limits the product of several rows

static inline __m512i four_of(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm512_set1_epi32(four);
}

static inline __m512 scales_of(const uint8_t* stored) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(stored)));
}

template <int Rows, int Groups>
static inline __attribute__((always_inline)) void add_dots(const __m512i* weights, const int8_t* x, int stride,
                                                           __m512i (*sums)[Rows]) {
  for (int r = 0; r < Rows; ++r) {
    const __m512i four = four_of(x + r * stride);
    for (int g = 0; g < Groups; ++g) sums[g][r] = _mm512_dpbusd_epi32(sums[g][r], weights[g], four);
  }
}

// Adds the products of a part of each group. Its weights are unpacked once for all rows.
// group_bytes: from a group to the next; stride: numbers from a row's part to the next row's.
template <int Bits, int Rows, int Groups>
static inline __attribute__((always_inline)) void add_part(const uint8_t* part, size_t group_bytes, const int8_t* x,
                                                           int stride, __m512i (*sums)[Rows]) {
  const __m512i low = _mm512_set1_epi8(15);
  for (int j = 0; j < lines_of(Bits); ++j) {
    __m512i first[Groups], second[Groups];
    for (int g = 0; g < Groups; ++g) {
      const __m512i bytes = _mm512_loadu_si512(part + size_t(g) * group_bytes + kLine * j);
      first[g] = Bits == 8 ? bytes : _mm512_and_si512(bytes, low);
      second[g] = _mm512_and_si512(_mm512_srli_epi32(bytes, 4), low);
    }
    add_dots<Rows, Groups>(first, x + 4 * j, stride, sums);
    if (Bits == 4) add_dots<Rows, Groups>(second, x + 16 + 4 * j, stride, sums);
  }
}

template <int Bits, int Rows, int Parts, int Groups>
void multiply_groups(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  const int64_t blocks = matrix.blocks();
  const size_t group_bytes = matrix.group_bytes();
  const int8_t* x = tile.values;
  const float* x_scales = tile.scales;
  const int32_t* corrections = tile.corrections;
  __m512 totals[Groups][Rows];
  for (auto& each : totals)
    for (__m512& total : each) total = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i sums[Groups][Rows];
    for (int r = 0; r < Rows; ++r)
      for (auto& each : sums) each[r] = _mm512_set1_epi32(corrections[r]);
    for (int p = 0; p < Parts; ++p, group += part_bytes(Bits))
      add_part<Bits, Rows, Groups>(group, group_bytes, x + p * kPart, Parts * kPart, sums);
    for (int g = 0; g < Groups; ++g) {
      const __m512 scales = scales_of(group + size_t(g) * group_bytes);
      for (int r = 0; r < Rows; ++r) {
        const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[r]));
        totals[g][r] = _mm512_add_ps(totals[g][r], _mm512_mul_ps(_mm512_cvtepi32_ps(sums[g][r]), scale));
      }
    }
    group += kColumns * kScaleBytes;
    x += Rows * Parts * kPart;
    x_scales += Rows;
    corrections += Rows;
  }
  for (int g = 0; g < Groups; ++g, columns -= kColumns, y += kColumns) {
    const __mmask16 mask = __mmask16((1u << (columns < kColumns ? columns : kColumns)) - 1);
    for (int r = 0; r < Rows; ++r) _mm512_mask_storeu_ps(y + size_t(r) * stride, mask, totals[g][r]);
  }
}

template <int Bits, int Rows, int Parts>
void multiply_blocks(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  if (columns > kColumns) return multiply_groups<Bits, Rows, Parts, 2>(matrix, tile, group, y, stride, columns);
  multiply_groups<Bits, Rows, Parts, 1>(matrix, tile, group, y, stride, columns);
}

}  // namespace
}  // namespace pplex

#include "multiply.h"

PPLEX_END_TARGET

namespace pplex {
namespace {

bool runs_here() {
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}

}  // namespace

const Level kAvx512Vnni = {"avx512vnni", kRows, kGroups, runs_here, prepare, round, multiply, attend, attend_steps};

}  // namespace pplex
#endif
