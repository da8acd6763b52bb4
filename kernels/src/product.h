// A product of rows with a packed matrix, split over threads.
#pragma once

#include "layout.h"
#include "pool.h"

namespace pplex {

// Rows that a product multiplies, and what it does with them before and with their results.
struct Rows {
  const float* x;  // [count, prologue.width(K)]
  int64_t count;
  Prologue prologue;
  const float* added;  // [count, N], or nullptr
};

// y = prologue(x) times the matrix, plus `added`. y: [count, N]. `packed`: matrix.groups() * matrix.group_bytes() bytes.
// Threads get different columns, so their number changes no bit. Throws std::bad_alloc.
void multiply(const Matrix& matrix, const uint8_t* packed, const Rows& rows, float* y, const Pool& pool);

}  // namespace pplex
