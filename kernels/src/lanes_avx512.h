// 16 numbers in float32, in one register of AVX-512.
#pragma once

namespace pplex {
namespace {

struct Lanes {
  __m512 value;

  static Lanes all(float x) { return {_mm512_set1_ps(x)}; }
  static Lanes of(const float* x) { return {_mm512_loadu_ps(x)}; }
  static Lanes of_half(const uint16_t* x) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)))};
  }
  void to(float* x) const { _mm512_storeu_ps(x, value); }
  void to_half(uint16_t* x) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  float sum() const {
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
    const __m128 quarters = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __m128 pairs = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
  }
};

static inline Lanes plus(Lanes a, Lanes b) { return {_mm512_add_ps(a.value, b.value)}; }
static inline Lanes times(Lanes a, Lanes b) { return {_mm512_mul_ps(a.value, b.value)}; }
static inline Lanes over(Lanes a, Lanes b) { return {_mm512_div_ps(a.value, b.value)}; }
static inline Lanes fused(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
static inline Lanes larger(Lanes a, Lanes b) { return {_mm512_max_ps(a.value, b.value)}; }
static inline Lanes times_power(Lanes y, Lanes shifted) {
  return times(y, {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.value), 23))});
}

}  // namespace
}  // namespace pplex
