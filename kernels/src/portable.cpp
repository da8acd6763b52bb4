// Plain C++: runs everywhere, and defines what the other levels must return.
#include "levels.h"
#include "rounding.h"

namespace pplex {
namespace {

// IEEE 754 half to single precision, exactly.
float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
  if (exponent == 0) {
    const float small = float(fraction) * 0x1p-24f;
    return sign ? -small : small;
  }
  const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The sums over one part for all columns.
void add_part(const uint8_t* part, const int8_t* x, int32_t* sums) {
  for (int j = 0; j < 4; ++j)
    for (int c = 0; c < kColumns; ++c)
      for (int i = 0; i < 4; ++i) {
        const int byte = part[64 * j + 4 * c + i];
        sums[c] += (byte & 15) * x[4 * j + i] + (byte >> 4) * x[16 + 4 * j + i];
      }
}

void multiply_row(const Matrix& matrix, const Tile& tile, int row, const uint8_t* group, float* totals) {
  for (int64_t b = 0; b < matrix.blocks(); ++b) {
    const uint8_t* block = group + size_t(b) * matrix.block_bytes();
    const int64_t at = b * tile.rows + row;
    int32_t sums[kColumns];
    for (int32_t& sum : sums) sum = tile.corrections[at];
    for (int64_t p = 0; p < matrix.block / kPart; ++p)
      add_part(block + p * kPartBytes, tile.values + at * matrix.block + p * kPart, sums);
    for (int c = 0; c < kColumns; ++c) {
      uint16_t half;
      memcpy(&half, block + matrix.block / kPart * kPartBytes + kScaleBytes * size_t(c), sizeof half);
      totals[c] += float(sums[c]) * (from_half(half) * tile.scales[at]);
    }
  }
}

void multiply(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  for (int row = 0; row < tile.rows; ++row) {
    float totals[kColumns] = {};
    multiply_row(matrix, tile, row, group, totals);
    memcpy(y + size_t(row) * stride, totals, size_t(columns) * sizeof(float));
  }
}

void round(const Matrix& matrix, const float* x, const Tile& tile, int row) { round_row(matrix, x, tile, row); }

bool runs_here() { return true; }

}  // namespace

const Level kPortable = {"portable", kMostRows, runs_here, round, multiply};

}  // namespace pplex
