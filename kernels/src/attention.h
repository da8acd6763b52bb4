// Attention to past keys and values, split over threads: to rings in float16, and to the few steps of the depth transformer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pool.h"

namespace pplex {

// Sizes: B slots with H heads, T queries a head, rings of C entries, D numbers in each of these.
struct Rings {
  int64_t slots, heads, steps, entries, width;

  bool valid() const { return width == 16 || width == 32 || width == 64 || width == 128; }
};

// One head of one slot. All numbers are float16.
struct Head {
  const uint16_t *q, *k, *v;  // [T, D], [C, D], [C, D]
  int64_t steps, width;
  int64_t count;  // entries that the last query reads, from entry 0 on; an earlier query reads one less than the next
  uint16_t* y;    // [T, D]
};

constexpr int kMostSteps = 512;

// Sizes for steps that each have their own tensor: B slots, H heads, D numbers each.
struct Steps {
  int64_t slots, heads, width, count;

  bool valid() const { return Rings{slots, heads, 1, 1, width}.valid() && count >= 1 && count <= kMostSteps; }
};

// One head of one slot. Query, key and value of a step stand at these places in its tensor, in float32.
struct StepsHead {
  const float* const* steps;
  int count;
  int64_t width, q, k, v;
  float* y;  // [D]
};

// Attention of the newest step to all: y = softmax(q k' / sqrt(D)) v. steps: `count` tensors [B, 3, H, D] float32 with queries,
// keys and values, the newest last. y: [B, H, D] float32.
void attend_steps(const Steps& sizes, const float* const* steps, float* y, const Pool& pool);

// y = softmax(q k' / sqrt(D)) v. q, y: [B, H, T, D]; k, v: [B, H, C, D]; lengths [B]: `count` of a slot's heads, from 0 to C.
// A query that reads no entry gets 0. Threads get different heads, so their number changes no bit.
void attend(const Rings& rings, const uint16_t* q, const uint16_t* k, const uint16_t* v, const int64_t* lengths,
            uint16_t* y, const Pool& pool);

}  // namespace pplex
