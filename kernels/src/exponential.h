// The exponential of Lanes. Included by each level, inside its target, after the header that defines Lanes.
#pragma once

namespace pplex {
namespace {

constexpr int kLanes = 16;

// exp(x) for x <= 0, to 2 units in the last place; 1e-38 below -87. NaN stays NaN.
static inline __attribute__((always_inline)) Lanes exponential(Lanes x) {
  constexpr float kLog2E = 1.44269504f, kShift = 12582912.0f + 127.0f;  // the shift rounds; 127 is the exponent of 1
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;   // their sum is ln 2
  constexpr float kFactors[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};  // of Taylor's series
  x = larger(Lanes::all(-87.0f), x);
  const Lanes shifted = fused(x, Lanes::all(kLog2E), Lanes::all(kShift));
  const Lanes power = plus(shifted, Lanes::all(-kShift));
  const Lanes rest = fused(power, Lanes::all(-kLn2Low), fused(power, Lanes::all(-kLn2High), x));  // within ln 2 / 2
  Lanes y = Lanes::all(1.0f / 720);
  for (float factor : kFactors) y = fused(y, rest, Lanes::all(factor));
  return times_power(y, shifted);
}

}  // namespace
}  // namespace pplex
