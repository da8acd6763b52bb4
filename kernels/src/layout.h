// The layout of packed weights, and what a level of instructions offers.
//
// A matrix is [K, N]: a product sums over K. Columns stand in groups of 16, and a column in blocks of `block` weights that share
// a scale. The bytes of a group follow each other, block after block, so that a thread reads one stream:
//
//   group g: | block 0                                   | block 1 ...
//              part 0 | ... | part block/32 - 1 | scales      a part: 256 bytes; scales: 16 float16
//   a part:    4 lines of 64 bytes; byte 4c + i of line j has the weight of column 16g + c
//              at k = 4j + i in its low half, and at k = 16 + 4j + i in its high half, both plus 8
//
// Columns behind the last one have weights and scales of 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pplex {

constexpr int kColumns = 16;       // of a group
constexpr int kPart = 32;          // weights of a column in a part
constexpr int kPartBytes = 256;    // of a part
constexpr int kOffset = 8;         // added to a weight before it is stored
constexpr int kMostRows = 8;       // of a tile
constexpr size_t kScaleBytes = 2;  // float16

struct Matrix {
  int64_t inputs, outputs;  // K, N
  int64_t block;            // 32, 64 or 128; divides K

  int64_t blocks() const { return inputs / block; }
  int64_t groups() const { return (outputs + kColumns - 1) / kColumns; }
  size_t block_bytes() const { return kColumns * (size_t(block) / 2 + kScaleBytes); }
  size_t group_bytes() const { return size_t(blocks()) * block_bytes(); }
  bool valid() const {
    return inputs > 0 && outputs > 0 && (block == 32 || block == 64 || block == 128) && inputs % block == 0;
  }
};

// Up to kMostRows rows of activations, rounded to int8 with one scale for each block of each row.
struct Tile {
  int rows;
  int8_t* values;        // [blocks, rows, block]
  float* scales;         // [blocks, rows]
  int32_t* corrections;  // [blocks, rows]: -kOffset times the sum of the values
};

// One level of instructions. All levels give the same bits: sums of a block are integers, and the blocks are added in order.
struct Level {
  const char* name;
  int rows;  // of a tile that this level multiplies at once
  bool (*runs_here)();
  // Round row `row` of the tile: x has matrix.inputs numbers.
  void (*round)(const Matrix& matrix, const float* x, const Tile& tile, int row);
  // Multiply the tile with one group. y: [tile.rows, `columns`] with `stride` numbers from row to row.
  void (*multiply)(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns);
};

}  // namespace pplex
