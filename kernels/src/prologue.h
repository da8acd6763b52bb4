// What a product does with a row before it rounds it. Included by each level, inside its target, after exponential.h.
#pragma once

#include "layout.h"

namespace pplex {
namespace {

// y = x / sqrt(mean(x^2) + epsilon) * weight.
static inline void normalize(const float* x, int64_t size, const float* weight, float epsilon, float* y) {
  Lanes squares = Lanes::all(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) squares = fused(Lanes::of(x + i), Lanes::of(x + i), squares);
  const Lanes scale = Lanes::all(1.0f / __builtin_sqrtf(squares.sum() / float(size) + epsilon));
  for (int64_t i = 0; i < size; i += kLanes) times(times(Lanes::of(x + i), scale), Lanes::of(weight + i)).to(y + i);
}

// y = a / (1 + exp(-a)) * b for the first and second half of x, a and b [size].
static inline void gate(const float* x, int64_t size, float* y) {
  const Lanes one = Lanes::all(1.0f), minus = Lanes::all(-1.0f), zero = Lanes::all(0.0f);
  for (int64_t i = 0; i < size; i += kLanes) {
    const Lanes a = Lanes::of(x + i), negative = times(a, minus);
    // exp(a) / (1 + exp(a)) below 0: no exponential is above 1.
    const Lanes above = exponential(times(larger(negative, zero), minus));
    const Lanes below = plus(one, exponential(times(larger(a, negative), minus)));
    times(times(a, over(above, below)), Lanes::of(x + size + i)).to(y + i);
  }
}

void prepare(const Prologue& prologue, const float* x, int64_t size, float* y) {
  if (prologue.gated) return gate(x, size, y);
  normalize(x, size, prologue.norm, prologue.epsilon, y);
}

}  // namespace
}  // namespace pplex
