// IEEE 754 half precision in plain C++. Included by the portable level.
#pragma once

#include <string.h>

#include <cstdint>

namespace pplex {
namespace {

static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Exactly.
static inline float from_half(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 0x3ffu;
  if (exponent == 0) {
    const float small = float(fraction) * 0x1p-24f;
    return sign ? -small : small;
  }
  return float_of(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
}

// To the nearest, halves to the even one; from 65520 on infinity. NaN stays NaN.
static inline uint16_t to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 16 & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return uint16_t(sign | 0x7e00u);
  if (bits >= 0x477ff000u) return uint16_t(sign | 0x7c00u);
  if (bits < 0x38800000u) {  // subnormal: adding 0.5 leaves multiples of 2^-24 in the last places of the sum
    const float sum = float_of(bits) + 0.5f;
    uint32_t rounded;
    memcpy(&rounded, &sum, sizeof rounded);
    return uint16_t(sign | (rounded - 0x3f000000u));
  }
  const uint32_t odd = bits >> 13 & 1u;
  return uint16_t(sign | (bits - (112u << 23) + 0xfffu + odd) >> 13);
}

}  // namespace
}  // namespace pplex
