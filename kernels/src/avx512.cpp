// AVX-512 with VNNI: vpdpbusd multiplies 64 weights. A block's weights are unpacked once for all rows of a tile.
#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12 warns of its own header: undefined registers
#endif
#include <immintrin.h>

#include "levels.h"
#include "rounding.h"
#include "targets.h"

PPLEX_BEGIN_TARGET("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,f16c")

namespace pplex {
namespace {


template <int Rows, int Parts>
void multiply_blocks(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  const __m512i low = _mm512_set1_epi8(15);
  const int64_t blocks = matrix.blocks();
  const int8_t* x = tile.values;
  const float* x_scales = tile.scales;
  const int32_t* corrections = tile.corrections;
  __m512 totals[Rows];
  for (__m512& total : totals) total = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    __m512i sums[Rows];
    for (int r = 0; r < Rows; ++r) sums[r] = _mm512_set1_epi32(corrections[r]);
    for (int p = 0; p < Parts; ++p) {
      for (int j = 0; j < 4; ++j) {
        const __m512i bytes = _mm512_loadu_si512(group);
        group += 64;
        const __m512i first = _mm512_and_si512(bytes, low);
        const __m512i second = _mm512_and_si512(_mm512_srli_epi32(bytes, 4), low);
        for (int r = 0; r < Rows; ++r) {
          int32_t four, other;
          memcpy(&four, x + (r * Parts + p) * kPart + 4 * j, 4);
          memcpy(&other, x + (r * Parts + p) * kPart + 16 + 4 * j, 4);
          sums[r] = _mm512_dpbusd_epi32(sums[r], first, _mm512_set1_epi32(four));
          sums[r] = _mm512_dpbusd_epi32(sums[r], second, _mm512_set1_epi32(other));
        }
      }
    }
    const __m512 scales = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)));
    group += kColumns * kScaleBytes;
    for (int r = 0; r < Rows; ++r) {
      const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[r]));
      totals[r] = _mm512_add_ps(totals[r], _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r]), scale));
    }
    x += Rows * Parts * kPart;
    x_scales += Rows;
    corrections += Rows;
  }
  const __mmask16 mask = __mmask16((1u << columns) - 1);
  for (int r = 0; r < Rows; ++r) _mm512_mask_storeu_ps(y + size_t(r) * stride, mask, totals[r]);
}

template <int Parts>
void multiply_tile(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  switch (tile.rows) {
    case 1: return multiply_blocks<1, Parts>(matrix, tile, group, y, stride, columns);
    case 2: return multiply_blocks<2, Parts>(matrix, tile, group, y, stride, columns);
    case 3: return multiply_blocks<3, Parts>(matrix, tile, group, y, stride, columns);
    case 4: return multiply_blocks<4, Parts>(matrix, tile, group, y, stride, columns);
    case 5: return multiply_blocks<5, Parts>(matrix, tile, group, y, stride, columns);
    case 6: return multiply_blocks<6, Parts>(matrix, tile, group, y, stride, columns);
    case 7: return multiply_blocks<7, Parts>(matrix, tile, group, y, stride, columns);
    default: return multiply_blocks<8, Parts>(matrix, tile, group, y, stride, columns);
  }
}

void multiply(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  switch (matrix.block) {
    case 32: return multiply_tile<1>(matrix, tile, group, y, stride, columns);
    case 64: return multiply_tile<2>(matrix, tile, group, y, stride, columns);
    default: return multiply_tile<4>(matrix, tile, group, y, stride, columns);
  }
}

void round(const Matrix& matrix, const float* x, const Tile& tile, int row) { round_row(matrix, x, tile, row); }

}  // namespace
}  // namespace pplex

PPLEX_END_TARGET

namespace pplex {
namespace {

bool runs_here() { return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"); }

}  // namespace

const Level kAvx512Vnni = {"avx512vnni", kMostRows, runs_here, round, multiply};

}  // namespace pplex
#endif
