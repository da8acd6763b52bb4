// Multiplies matrices of many sizes on every level with two threads, for a run under sanitizers. Every buffer ends where the data
// end. Prints the number of products; exits with 1 if two levels differ.
#include <string.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "levels.h"
#include "product.h"

namespace {

using pplex::Matrix;

uint32_t state = 1;

uint32_t next() { return state = state * 1664525u + 1013904223u; }

// Two threads, each with every second task.
void in_two_threads(void*, void (*task)(void*, size_t), size_t count, void* data) {
  auto half = [=](size_t first) {
    for (size_t i = first; i < count; i += 2) task(data, i);
  };
  std::thread other(half, 1);
  half(0);
  other.join();
}

std::unique_ptr<uint8_t[]> weights(const Matrix& matrix) {
  const size_t size = size_t(matrix.groups()) * matrix.group_bytes();
  std::unique_ptr<uint8_t[]> packed(new uint8_t[size]);
  for (size_t i = 0; i < size; ++i) packed[i] = uint8_t(next() >> 24);
  for (size_t block = 0; block < size; block += matrix.block_bytes())  // scales around 1: no infinity, no NaN
    for (size_t i = matrix.block_bytes() - 32; i < matrix.block_bytes(); i += 2) packed[block + i + 1] = 0x3c;
  return packed;
}

std::vector<float> product(const Matrix& matrix, const uint8_t* packed, const std::vector<float>& x, int64_t rows) {
  std::unique_ptr<float[]> y(new float[size_t(rows * matrix.outputs)]);
  pplex::multiply(matrix, packed, x.data(), rows, y.get(), {nullptr, in_two_threads});
  return std::vector<float>(y.get(), y.get() + rows * matrix.outputs);
}

std::vector<std::string> names() {
  std::vector<std::string> found(1);
  for (const char* c = pplex::level_names(); *c; ++c)
    if (*c == ',')
      found.emplace_back();
    else
      found.back() += *c;
  return found;
}

}  // namespace

int main() {
  int products = 0;
  for (int64_t block : {32, 64, 128})
    for (int64_t outputs : {1, 15, 16, 17, 40, 333})
      for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 19}) {
        const Matrix matrix{block * (1 + int64_t(next() >> 29)), outputs, block};
        const auto packed = weights(matrix);
        std::vector<float> x(size_t(rows * matrix.inputs));
        for (float& one : x) one = float(int32_t(next())) * 1e-9f;
        std::vector<float> first;
        for (const std::string& name : names()) {
          if (!pplex::use_level(name.c_str())) return 1;
          const std::vector<float> y = product(matrix, packed.get(), x, rows);
          if (first.empty()) first = y;
          if (memcmp(first.data(), y.data(), y.size() * sizeof(float))) {
            std::printf("%s differs: %d x %d, %d rows\n", name.c_str(), int(matrix.inputs), int(outputs), int(rows));
            return 1;
          }
          ++products;
        }
      }
  std::printf("%d products\n", products);
}
