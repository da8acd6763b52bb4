// The product of a tile with a group, for any number of rows, bits and block. Included by each level with registers, inside its
// target, after `multiply_blocks` and `kRows`.
#pragma once

namespace pplex {
namespace {

template <int Bits, int Parts, int Rows = kRows>
void multiply_rows(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  if constexpr (Rows > 1)
    if (tile.rows < Rows) return multiply_rows<Bits, Parts, Rows - 1>(matrix, tile, group, y, stride, columns);
  multiply_blocks<Bits, Rows, Parts>(matrix, tile, group, y, stride, columns);
}

template <int Bits>
void multiply_bits(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  switch (matrix.block) {
    case 32: return multiply_rows<Bits, 1>(matrix, tile, group, y, stride, columns);
    case 64: return multiply_rows<Bits, 2>(matrix, tile, group, y, stride, columns);
    default: return multiply_rows<Bits, 4>(matrix, tile, group, y, stride, columns);
  }
}

void multiply(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  if (matrix.bits == 4) return multiply_bits<4>(matrix, tile, group, y, stride, columns);
  multiply_bits<8>(matrix, tile, group, y, stride, columns);
}

void round(const Matrix& matrix, const float* x, const Tile& tile, int row) { round_row(matrix, x, tile, row); }

}  // namespace
}  // namespace pplex
