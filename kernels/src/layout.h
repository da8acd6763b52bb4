// The layout of packed weights, and what a level of instructions offers.
//
// A matrix is [K, N]: a product sums over K. Its weights have 4 or 8 bits. Columns stand in groups of 16, and a column in blocks
// of `block` weights that share a scale. The bytes of a group follow each other, block after block, so that a thread reads one
// stream:
//
//   group g: | block 0                                   | block 1 ...
//              part 0 | ... | part block/32 - 1 | scales      scales: 16 float16
//   a part has lines of 64 bytes, which hold weights of column 16g + c:
//     4 bits:  4 lines; byte 4c + i of line j has k = 4j + i in its low half and k = 16 + 4j + i in its high half, both plus 8
//     8 bits:  8 lines; byte 4c + i of line j has k = 4j + i, plus 128
//
// Columns behind the last one have scales of 0.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention.h"

namespace pplex {

constexpr int kColumns = 16;       // of a group
constexpr int kPart = 32;          // weights of a column in a part
constexpr int kLine = 64;          // bytes
constexpr int kMostRows = 8;       // of a tile
constexpr size_t kScaleBytes = 2;  // float16

constexpr int lines_of(int bits) { return kColumns * kPart * bits / 8 / kLine; }  // of a part
constexpr int part_bytes(int bits) { return lines_of(bits) * kLine; }

struct Matrix {
  int64_t inputs, outputs;  // K, N
  int64_t block;            // 32, 64 or 128; divides K
  int64_t bits;             // of a weight: 4 or 8

  int32_t offset() const { return 1 << (bits - 1); }  // added to a weight before it is stored
  int64_t blocks() const { return inputs / block; }
  int64_t groups() const { return (outputs + kColumns - 1) / kColumns; }
  size_t block_bytes() const { return kColumns * (size_t(block * bits / 8) + kScaleBytes); }
  size_t group_bytes() const { return size_t(blocks()) * block_bytes(); }
  bool valid() const {
    if (inputs <= 0 || outputs <= 0 || (bits != 4 && bits != 8)) return false;
    return (block == 32 || block == 64 || block == 128) && inputs % block == 0;
  }
};

// Up to kMostRows rows of activations, rounded to int8 with one scale for each block of each row.
struct Tile {
  int rows;
  int8_t* values;        // [blocks, rows, block]
  float* scales;         // [blocks, rows]
  int32_t* corrections;  // [blocks, rows]: the sum of the values times -matrix.offset()
};

// What a product does with each row of K numbers before it is rounded: nothing, RMSNorm, or the gate of SwiGLU, which makes K
// numbers of 2 K.
struct Prologue {
  const float* norm = nullptr;  // [K]: its weights
  float epsilon = 0.0f;
  bool gated = false;

  bool any() const { return norm || gated; }
  int64_t width(int64_t inputs) const { return gated ? 2 * inputs : inputs; }
};

// One level of instructions. All levels give the same bits: sums of a block are integers, and the blocks are added in order.
struct Level {
  const char* name;
  int rows;    // of a tile that this level multiplies at once
  int groups;  // that it multiplies the tile with at once, at most
  bool (*runs_here)();
  // Apply a prologue to a row: y [size], a multiple of 16.
  void (*prepare)(const Prologue& prologue, const float* x, int64_t size, float* y);
  // Round row `row` of the tile: x has matrix.inputs numbers.
  void (*round)(const Matrix& matrix, const float* x, const Tile& tile, int row);
  // Multiply the tile with `columns` columns, which are in up to `groups` groups from `group` on.
  // y: [tile.rows, `columns`] with `stride` numbers from row to row.
  void (*multiply)(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns);
  void (*attend)(const Head& head);
  void (*attend_steps)(const StepsHead& head);
};

}  // namespace pplex
