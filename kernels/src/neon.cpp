// NEON with dot products (Arm v8.2): sdot multiplies 16 weights.
#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#include "levels.h"
#include "rounding.h"
#include "targets.h"

PPLEX_BEGIN_TARGET("arch=armv8.2-a+dotprod")

#include "lanes_neon.h"

#include "exponential.h"

#include "attention_head.h"
#include "prologue.h"

namespace pplex {
namespace {

constexpr int kRows = 4;
constexpr int kQuarter = 4;  // columns of a register

static inline int8x16_t four_of(const int8_t* x) {
  int32_t four;
  memcpy(&four, x, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// Adds the products of a part: lines of 4 registers with 4 columns and 4 weights each. stride: from a row's part to the next's.
template <int Bits, int Rows>
static inline void add_part(const uint8_t* part, const int8_t* x, int stride, int32x4_t (*sums)[4]) {
  for (int j = 0; j < lines_of(Bits); ++j)
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t bytes = vld1q_u8(part + kLine * j + 16 * q);
      // 8 bits: the weight itself, because the instruction multiplies signed numbers.
      const uint8x16_t first = Bits == 8 ? veorq_u8(bytes, vdupq_n_u8(128)) : vandq_u8(bytes, vdupq_n_u8(15));
      for (int r = 0; r < Rows; ++r)
        sums[r][q] = vdotq_s32(sums[r][q], vreinterpretq_s8_u8(first), four_of(x + r * stride + 4 * j));
      if (Bits == 8) continue;
      const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
      for (int r = 0; r < Rows; ++r) sums[r][q] = vdotq_s32(sums[r][q], second, four_of(x + r * stride + 16 + 4 * j));
    }
}

template <int Bits, int Rows, int Parts>
void multiply_blocks(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  const int64_t blocks = matrix.blocks();
  float32x4_t totals[Rows][4];
  for (auto& row : totals)
    for (float32x4_t& total : row) total = vdupq_n_f32(0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    int32x4_t sums[Rows][4];
    for (int r = 0; r < Rows; ++r)
      for (int32x4_t& sum : sums[r]) sum = vdupq_n_s32(Bits == 8 ? 0 : tile.corrections[b * Rows + r]);
    for (int p = 0; p < Parts; ++p, group += part_bytes(Bits))
      add_part<Bits, Rows>(group, tile.values + (b * Rows * Parts + p) * kPart, Parts * kPart, sums);
    for (int q = 0; q < 4; ++q) {
      uint16_t stored[kQuarter];
      memcpy(stored, group + 8 * q, sizeof stored);
      const float32x4_t scales = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(stored)));
      for (int r = 0; r < Rows; ++r) {
        const float32x4_t scale = vmulq_n_f32(scales, tile.scales[b * Rows + r]);
        totals[r][q] = vaddq_f32(totals[r][q], vmulq_f32(vcvtq_f32_s32(sums[r][q]), scale));
      }
    }
    group += kColumns * kScaleBytes;
  }
  for (int r = 0; r < Rows; ++r) {
    float row[kColumns];
    for (int q = 0; q < 4; ++q) vst1q_f32(row + kQuarter * q, totals[r][q]);
    memcpy(y + size_t(r) * stride, row, size_t(columns) * sizeof(float));
  }
}

}  // namespace
}  // namespace pplex

#include "multiply.h"

PPLEX_END_TARGET

namespace pplex {
namespace {

bool runs_here() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

}  // namespace

const Level kNeonDot = {"neondot", kRows, 1, runs_here, prepare, round, multiply, attend, attend_steps};

}  // namespace pplex
#endif
