// 16 numbers in float32, in plain C++.
#pragma once

namespace pplex {
namespace {

struct Lanes {
  float each[16];

  static Lanes all(float x) {
    Lanes result;
    for (float& one : result.each) one = x;
    return result;
  }
  static Lanes of(const float* x) {
    Lanes result;
    memcpy(result.each, x, sizeof result.each);
    return result;
  }
  static Lanes of_half(const uint16_t* x) {
    Lanes result;
    for (int i = 0; i < 16; ++i) result.each[i] = from_half(x[i]);
    return result;
  }
  void to(float* x) const { memcpy(x, each, sizeof each); }
  void to_half(uint16_t* x) const {
    for (int i = 0; i < 16; ++i) x[i] = pplex::to_half(each[i]);
  }
  float sum() const {
    float quarters[4];
    for (int i = 0; i < 4; ++i) quarters[i] = (each[i] + each[i + 8]) + (each[i + 4] + each[i + 12]);
    return (quarters[0] + quarters[2]) + (quarters[1] + quarters[3]);
  }
};

static inline Lanes plus(Lanes a, const Lanes& b) {
  for (int i = 0; i < 16; ++i) a.each[i] += b.each[i];
  return a;
}
static inline Lanes times(Lanes a, const Lanes& b) {
  for (int i = 0; i < 16; ++i) a.each[i] *= b.each[i];
  return a;
}
static inline Lanes over(Lanes a, const Lanes& b) {
  for (int i = 0; i < 16; ++i) a.each[i] /= b.each[i];
  return a;
}
static inline Lanes fused(const Lanes& a, const Lanes& b, Lanes c) {
  for (int i = 0; i < 16; ++i) c.each[i] = __builtin_fmaf(a.each[i], b.each[i], c.each[i]);
  return c;
}
static inline Lanes larger(const Lanes& a, Lanes b) {
  for (int i = 0; i < 16; ++i) b.each[i] = a.each[i] > b.each[i] ? a.each[i] : b.each[i];
  return b;
}
static inline Lanes times_power(Lanes y, const Lanes& shifted) {
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    memcpy(&bits, &shifted.each[i], sizeof bits);
    y.each[i] *= float_of(bits << 23);
  }
  return y;
}

}  // namespace
}  // namespace pplex
