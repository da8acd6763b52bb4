// Rounds a row of activations to int8. Included by each level, so that the compiler vectorises it for that level.
#pragma once

#include <string.h>

#include "layout.h"

namespace pplex {

constexpr float kTop = 127.0f;
constexpr float kSmallest = 1e-30f;  // a block without a larger number is 0: 127 / x must stay finite
constexpr uint32_t kInfinity = 0x7f800000u;
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer, halves to the even one
constexpr int32_t kMagicBits = 0x4b400000;

// The largest magnitude of a block, as bits: integers compare in any order with one result, also NaN.
static inline __attribute__((always_inline)) uint32_t largest_bits(const float* x, int block) {
  uint32_t largest = 0;
  for (int i = 0; i < block; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

// Returns the sum of the rounded values.
static inline __attribute__((always_inline)) int32_t round_values(const float* x, int block, float inverse, int8_t* values) {
  int32_t sum = 0;
  for (int i = 0; i < block; ++i) {
    const float shifted = x[i] * inverse + kMagic;
    int32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    const int32_t value = bits - kMagicBits;
    values[i] = int8_t(value);
    sum += value;
  }
  return sum;
}

// A block with NaN or infinity gets a scale of NaN: the whole row of the product is then NaN.
static inline __attribute__((always_inline)) void round_block(const float* x, int block, int32_t offset, int8_t* values,
                                                              float* scale, int32_t* correction) {
  const uint32_t bits = largest_bits(x, block);
  float largest;
  memcpy(&largest, &bits, sizeof largest);
  if (bits >= kInfinity || largest < kSmallest) {
    memset(values, 0, size_t(block));
    *scale = bits >= kInfinity ? __builtin_nanf("") : 0.0f;
    *correction = 0;
    return;
  }
  *scale = largest / kTop;
  *correction = -offset * round_values(x, block, kTop / largest, values);
}

static inline __attribute__((always_inline)) void round_row(const Matrix& matrix, const float* x, const Tile& tile, int row) {
  const int32_t offset = matrix.offset();
  for (int64_t b = 0; b < matrix.blocks(); ++b) {
    const int64_t at = b * tile.rows + row;
    int8_t* values = tile.values + at * matrix.block;
    switch (matrix.block) {  // constants, so that the loops unroll
      case 32: round_block(x + b * 32, 32, offset, values, tile.scales + at, tile.corrections + at); break;
      case 64: round_block(x + b * 64, 64, offset, values, tile.scales + at, tile.corrections + at); break;
      default: round_block(x + b * 128, 128, offset, values, tile.scales + at, tile.corrections + at);
    }
  }
}

}  // namespace pplex
