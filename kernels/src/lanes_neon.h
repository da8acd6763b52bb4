// 16 numbers in float32, in four registers of NEON.
#pragma once

namespace pplex {
namespace {

struct Lanes {
  float32x4_t four[4];

  static Lanes all(float x) {
    const float32x4_t same = vdupq_n_f32(x);
    return {{same, same, same, same}};
  }
  static Lanes of(const float* x) { return {{vld1q_f32(x), vld1q_f32(x + 4), vld1q_f32(x + 8), vld1q_f32(x + 12)}}; }
  static Lanes of_half(const uint16_t* x) {
    const uint16x8_t first = vld1q_u16(x), second = vld1q_u16(x + 8);
    return {{from_half(vget_low_u16(first)), from_half(vget_high_u16(first)), from_half(vget_low_u16(second)),
             from_half(vget_high_u16(second))}};
  }
  void to(float* x) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(x + 4 * i, four[i]);
  }
  void to_half(uint16_t* x) const {
    for (int i = 0; i < 4; ++i) vst1_u16(x + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(four[i])));
  }
  float sum() const {
    const float32x4_t quarters = vaddq_f32(vaddq_f32(four[0], four[2]), vaddq_f32(four[1], four[3]));
    const float32x2_t pairs = vadd_f32(vget_low_f32(quarters), vget_high_f32(quarters));
    return vget_lane_f32(pairs, 0) + vget_lane_f32(pairs, 1);
  }

 private:
  static float32x4_t from_half(uint16x4_t x) { return vcvt_f32_f16(vreinterpret_f16_u16(x)); }
};

static inline Lanes plus(Lanes a, const Lanes& b) {
  for (int i = 0; i < 4; ++i) a.four[i] = vaddq_f32(a.four[i], b.four[i]);
  return a;
}
static inline Lanes times(Lanes a, const Lanes& b) {
  for (int i = 0; i < 4; ++i) a.four[i] = vmulq_f32(a.four[i], b.four[i]);
  return a;
}
static inline Lanes over(Lanes a, const Lanes& b) {
  for (int i = 0; i < 4; ++i) a.four[i] = vdivq_f32(a.four[i], b.four[i]);
  return a;
}
static inline Lanes fused(const Lanes& a, const Lanes& b, Lanes c) {
  for (int i = 0; i < 4; ++i) c.four[i] = vfmaq_f32(c.four[i], a.four[i], b.four[i]);
  return c;
}
static inline Lanes larger(const Lanes& a, Lanes b) {
  for (int i = 0; i < 4; ++i) b.four[i] = vbslq_f32(vcgtq_f32(a.four[i], b.four[i]), a.four[i], b.four[i]);
  return b;
}
static inline Lanes times_power(const Lanes& y, Lanes shifted) {
  for (float32x4_t& four : shifted.four) four = vreinterpretq_f32_s32(vshlq_n_s32(vreinterpretq_s32_f32(four), 23));
  return times(y, shifted);
}

}  // namespace
}  // namespace pplex
