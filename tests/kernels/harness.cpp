// Products and attentions of many sizes on every level with two threads, for a run under sanitizers. Every buffer ends where the
// data end. Prints how many there were; exits with 1 if two levels differ.
#include <string.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "attention.h"
#include "levels.h"
#include "product.h"

namespace {

using pplex::Matrix;
using pplex::Rings;

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

std::vector<float> product(const Matrix& matrix, const uint8_t* packed, const pplex::Rows& rows) {
  std::unique_ptr<float[]> y(new float[size_t(rows.count * matrix.outputs)]);
  pplex::multiply(matrix, packed, rows, y.get(), {nullptr, in_two_threads});
  return std::vector<float>(y.get(), y.get() + rows.count * matrix.outputs);
}

std::unique_ptr<float[]> floats(int64_t size) {
  std::unique_ptr<float[]> made(new float[size_t(size)]);
  for (int64_t i = 0; i < size; ++i) made[size_t(i)] = float(int32_t(next())) * 1e-9f;
  return made;
}

// Numbers in float16 between 0.5 and 1, of both signs.
std::unique_ptr<uint16_t[]> halves(int64_t size) {
  std::unique_ptr<uint16_t[]> made(new uint16_t[size_t(size)]);
  for (int64_t i = 0; i < size; ++i) made[size_t(i)] = uint16_t(0x3800u | (next() >> 16 & 0x83ffu));
  return made;
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

// Calls compute() on every level; exits if the results differ.
template <typename T, typename Compute>
int on_every_level(const std::string& what, Compute compute) {
  std::vector<T> first;
  int levels = 0;
  for (const std::string& name : names()) {
    if (!pplex::use_level(name.c_str())) std::exit(1);
    const std::vector<T> y = compute();
    if (first.empty()) first = y;
    if (memcmp(first.data(), y.data(), y.size() * sizeof(T))) {
      std::printf("%s differs: %s\n", name.c_str(), what.c_str());
      std::exit(1);
    }
    ++levels;
  }
  return levels;
}

int products() {
  int done = 0;
  for (int64_t block : {32, 64, 128})
    for (int64_t outputs : {1, 15, 16, 17, 40, 333})
      for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 19}) {
        const int64_t bits = (outputs + rows) % 2 ? 4 : 8;
        const Matrix matrix{block * (1 + int64_t(next() >> 29)), outputs, block, bits};
        const auto packed = weights(matrix);
        const auto norm = floats(matrix.inputs), added = floats(rows * outputs);
        const bool normed = rows % 3 == 0, gated = rows % 3 == 1;
        const pplex::Prologue prologue{normed ? norm.get() : nullptr, 1e-8f, gated};
        const auto x = floats(rows * prologue.width(matrix.inputs));
        const std::string what = std::to_string(matrix.inputs) + " x " + std::to_string(outputs) + ", rows " + std::to_string(rows);
        done += on_every_level<float>(what, [&] { return product(matrix, packed.get(), {x.get(), rows, prologue, outputs % 2 ? added.get() : nullptr}); });
      }
  return done;
}

int attentions() {
  int done = 0;
  for (int64_t width : {16, 32, 64, 128})
    for (int64_t steps : {1, 2, 5})
      for (int64_t entries : {1, 16, 33, 512, 1030}) {
        const Rings rings{2, 3, steps, entries, width};
        const int64_t queries = rings.slots * rings.heads * steps * width, stored = rings.slots * rings.heads * entries * width;
        const auto q = halves(queries), k = halves(stored), v = halves(stored);
        const int64_t lengths[] = {entries, entries / 2};
        const std::string what = std::to_string(entries) + " entries of " + std::to_string(width) + ", steps " + std::to_string(steps);
        done += on_every_level<uint16_t>(what, [&] {
          const std::unique_ptr<uint16_t[]> y(new uint16_t[size_t(queries)]);
          pplex::attend(rings, q.get(), k.get(), v.get(), lengths, y.get(), {nullptr, in_two_threads});
          return std::vector<uint16_t>(y.get(), y.get() + queries);
        });
      }
  return done;
}

}  // namespace

int main() {
  const int multiplied = products();
  std::printf("%d products, %d attentions\n", multiplied, attentions());
}
