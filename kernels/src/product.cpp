#include "product.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "levels.h"

namespace pplex {
namespace {

// Packed weights that a thread takes at a time, for one row: a kChunks-th of a matrix, so that many threads end together.
constexpr size_t kLeastBytes = 32 << 10, kMostBytes = 128 << 10;
constexpr size_t kChunks = 64;
constexpr int64_t kSerialRows = 2;  // so few rows are rounded faster than other threads wake up

struct Work {
  const Matrix& matrix;
  const Level& level;
  const uint8_t* packed;
  const Rows& rows;
  float* prepared;  // [rows, K]: after the prologue; nullptr without one
  float* y;
  int64_t chunk;   // groups that a thread takes at a time
  int64_t groups;  // of these that are multiplied at once
  std::vector<Tile> tiles;
};

// Memory of the rounded rows. Rows of a tile stand block by block, so that a level reads them at fixed distances.
struct Rounded {
  std::unique_ptr<int8_t[]> values;
  std::unique_ptr<float[]> scales;
  std::unique_ptr<int32_t[]> corrections;

  Rounded(const Matrix& matrix, int64_t rows)
      : values(new int8_t[size_t(rows * matrix.inputs)]),
        scales(new float[size_t(rows * matrix.blocks())]),
        corrections(new int32_t[size_t(rows * matrix.blocks())]) {}

  std::vector<Tile> tiles(const Matrix& matrix, int64_t rows, int height) const {
    std::vector<Tile> result;
    for (int64_t row = 0; row < rows; row += height) {
      const int64_t block = row * matrix.blocks();
      result.push_back({int(std::min<int64_t>(height, rows - row)), values.get() + row * matrix.inputs,
                        scales.get() + block, corrections.get() + block});
    }
    return result;
  }
};

void round_one(void* data, size_t row) {
  const Work& work = *static_cast<const Work*>(data);
  const size_t height = size_t(work.level.rows), inputs = size_t(work.matrix.inputs);
  const Prologue& prologue = work.rows.prologue;
  const float* x = work.rows.x + row * size_t(prologue.width(work.matrix.inputs));
  if (work.prepared) {
    float* prepared = work.prepared + row * inputs;
    work.level.prepare(prologue, x, work.matrix.inputs, prepared);
    x = prepared;
  }
  work.level.round(work.matrix, x, work.tiles[row / height], int(row % height));
}

void add(const float* added, int64_t rows, int64_t stride, int columns, float* y) {
  for (int64_t row = 0; row < rows; ++row, added += stride, y += stride)
    for (int c = 0; c < columns; ++c) y[c] += added[c];
}

void multiply_chunk(void* data, size_t chunk) {
  const Work& work = *static_cast<const Work*>(data);
  const Matrix& matrix = work.matrix;
  const int64_t first = int64_t(chunk) * work.chunk, last = std::min(first + work.chunk, matrix.groups());
  for (int64_t group = first; group < last; group += work.groups) {
    const uint8_t* packed = work.packed + size_t(group) * matrix.group_bytes();
    const int64_t end = std::min(matrix.outputs, std::min(group + work.groups, last) * kColumns);
    const int columns = int(end - group * kColumns);
    float* y = work.y + group * kColumns;
    for (const Tile& tile : work.tiles) {
      work.level.multiply(matrix, tile, packed, y, size_t(matrix.outputs), columns);
      y += tile.rows * matrix.outputs;
    }
    const int64_t first_column = group * kColumns;
    if (work.rows.added)
      add(work.rows.added + first_column, work.rows.count, matrix.outputs, columns, work.y + first_column);
  }
}

int64_t groups_at_a_time(const Matrix& matrix, int64_t rows) {
  const size_t bytes = std::clamp(size_t(matrix.groups()) * matrix.group_bytes() / kChunks, kLeastBytes, kMostBytes);
  return std::max<int64_t>(1, int64_t(bytes / matrix.group_bytes()) / rows);
}

void run(const Pool& pool, void (*task)(void*, size_t), size_t count, bool serial, void* data) {
  if (count > 1 && !serial) return pool.run(pool.context, task, count, data);
  for (size_t i = 0; i < count; ++i) task(data, i);
}

}  // namespace

void multiply(const Matrix& matrix, const uint8_t* packed, const Rows& rows, float* y, const Pool& pool) {
  if (rows.count == 0) return;
  const Level& now = level();  // one level for the whole call
  const Rounded rounded(matrix, rows.count);
  const std::unique_ptr<float[]> prepared(rows.prologue.any() ? new float[size_t(rows.count * matrix.inputs)] : nullptr);
  const int64_t groups = rows.count > 1 ? now.groups : 1;  // one row reads one stream
  const int64_t chunk = (groups_at_a_time(matrix, rows.count) + groups - 1) / groups * groups;
  Work work{matrix, now, packed, rows, prepared.get(), y, chunk, groups, rounded.tiles(matrix, rows.count, now.rows)};
  run(pool, round_one, size_t(rows.count), rows.count <= kSerialRows, &work);
  run(pool, multiply_chunk, size_t((matrix.groups() + work.chunk - 1) / work.chunk), false, &work);
}

}  // namespace pplex
