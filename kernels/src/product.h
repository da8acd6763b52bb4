// A product of rows with a packed matrix, split over threads.
#pragma once

#include "layout.h"
#include "pool.h"

namespace pplex {

// y = x times the matrix. x: [rows, inputs], y: [rows, outputs]. `packed`: matrix.groups() * matrix.group_bytes() bytes.
// Threads get different columns, so their number changes no bit. Throws std::bad_alloc.
void multiply(const Matrix& matrix, const uint8_t* packed, const float* x, int64_t rows, float* y, const Pool& pool);

}  // namespace pplex
