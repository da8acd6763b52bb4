// The product in 256-bit registers, for AVX2 and AVX-VNNI: half a group at a time. Included inside a target, with `add_dots` and
// `add_wide_dots`: both add the products of 8 registers of weights (of 4 bits, or of 8) with a row's part.
#pragma once

namespace pplex {
namespace {

constexpr int kRows = 4;
constexpr int kHalf = 8;  // columns of a register

static inline __m256i four_of(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

static inline __m256i loaded(const uint8_t* bytes) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes)); }

// The sums over the block, for one half of the columns and all rows.
template <int Bits, int Rows, int Parts>
static inline void sum_half(const uint8_t* half, const int8_t* x, __m256i* sums) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int p = 0; p < Parts; ++p, half += part_bytes(Bits)) {
    __m256i weights[8];
    for (int j = 0; j < 8; ++j) {
      if (Bits == 8)
        weights[j] = loaded(half + kLine * j);
      else if (j < 4)
        weights[j] = _mm256_and_si256(loaded(half + kLine * j), low);
      else
        weights[j] = _mm256_and_si256(_mm256_srli_epi16(loaded(half + kLine * (j - 4)), 4), low);
    }
    for (int r = 0; r < Rows; ++r) {
      const int8_t* row = x + (r * Parts + p) * kPart;
      sums[r] = Bits == 4 ? add_dots(sums[r], weights, row) : add_wide_dots(sums[r], weights, row);
    }
  }
}

template <int Bits, int Rows, int Parts>
void multiply_blocks(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  const int64_t blocks = matrix.blocks();
  __m256 totals[2][Rows];
  for (auto& half : totals)
    for (__m256& total : half) total = _mm256_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b, group += matrix.block_bytes()) {
    const uint8_t* stored = group + Parts * part_bytes(Bits);
    for (int h = 0; h < 2; ++h) {
      __m256i sums[Rows];
      for (int r = 0; r < Rows; ++r) sums[r] = _mm256_set1_epi32(tile.corrections[b * Rows + r]);
      sum_half<Bits, Rows, Parts>(group + 32 * h, tile.values + b * Rows * Parts * kPart, sums);
      const __m256 scales = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(stored + 16 * h)));
      for (int r = 0; r < Rows; ++r) {
        const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(tile.scales[b * Rows + r]));
        totals[h][r] = _mm256_add_ps(totals[h][r], _mm256_mul_ps(_mm256_cvtepi32_ps(sums[r]), scale));
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    float row[kColumns];
    _mm256_storeu_ps(row, totals[0][r]);
    _mm256_storeu_ps(row + kHalf, totals[1][r]);
    memcpy(y + size_t(r) * stride, row, size_t(columns) * sizeof(float));
  }
}

}  // namespace
}  // namespace pplex

#include "multiply.h"
