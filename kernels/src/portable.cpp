// Plain C++: runs everywhere, and defines what the other levels must return.
#include "half.h"
#include "levels.h"
#include "rounding.h"

#include "lanes_portable.h"

#include "exponential.h"

#include "attention_head.h"
#include "prologue.h"

namespace pplex {
namespace {

// The sums over one part for all columns.
void add_part(int64_t bits, const uint8_t* part, const int8_t* x, int32_t* sums) {
  for (int j = 0; j < lines_of(int(bits)); ++j)
    for (int c = 0; c < kColumns; ++c)
      for (int i = 0; i < 4; ++i) {
        const int byte = part[kLine * j + 4 * c + i], k = 4 * j + i;
        sums[c] += bits == 8 ? byte * x[k] : (byte & 15) * x[k] + (byte >> 4) * x[16 + k];
      }
}

void multiply_row(const Matrix& matrix, const Tile& tile, int row, const uint8_t* group, float* totals) {
  for (int64_t b = 0; b < matrix.blocks(); ++b) {
    const uint8_t* block = group + size_t(b) * matrix.block_bytes();
    const int64_t at = b * tile.rows + row;
    int32_t sums[kColumns];
    for (int32_t& sum : sums) sum = tile.corrections[at];
    const int64_t parts = matrix.block / kPart, nbytes = part_bytes(int(matrix.bits));
    for (int64_t p = 0; p < parts; ++p)
      add_part(matrix.bits, block + p * nbytes, tile.values + at * matrix.block + p * kPart, sums);
    for (int c = 0; c < kColumns; ++c) {
      uint16_t half;
      memcpy(&half, block + parts * nbytes + int64_t(kScaleBytes) * c, sizeof half);
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

const Level kPortable = {"portable", kMostRows, 1, runs_here, prepare, round, multiply, attend, attend_steps};

}  // namespace pplex
