// NEON with dot products (Arm v8.2): sdot multiplies 16 weights.
#if defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>

#include "levels.h"
#include "rounding.h"
#include "targets.h"

PPLEX_BEGIN_TARGET("arch=armv8.2-a+dotprod")

namespace pplex {
namespace {

constexpr int kQuarter = 4;  // columns of a register

// The sums over one part: weights of all columns, 4 * 4 registers of 4 columns and 4 weights each.
template <int Rows, int Parts>
static inline void add_part(const uint8_t* part, const int8_t* x, int32x4_t (*sums)[4]) {
  for (int j = 0; j < 4; ++j)
    for (int q = 0; q < 4; ++q) {
      const uint8x16_t bytes = vld1q_u8(part + 64 * j + 16 * q);
      const int8x16_t first = vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15)));
      const int8x16_t second = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
      for (int r = 0; r < Rows; ++r) {
        int32_t four, other;
        memcpy(&four, x + r * Parts * kPart + 4 * j, 4);
        memcpy(&other, x + r * Parts * kPart + 16 + 4 * j, 4);
        sums[r][q] = vdotq_s32(sums[r][q], first, vreinterpretq_s8_s32(vdupq_n_s32(four)));
        sums[r][q] = vdotq_s32(sums[r][q], second, vreinterpretq_s8_s32(vdupq_n_s32(other)));
      }
    }
}

template <int Rows, int Parts>
void multiply_blocks(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  const int64_t blocks = matrix.blocks();
  float32x4_t totals[Rows][4];
  for (auto& row : totals)
    for (float32x4_t& total : row) total = vdupq_n_f32(0.0f);
  for (int64_t b = 0; b < blocks; ++b) {
    int32x4_t sums[Rows][4];
    for (int r = 0; r < Rows; ++r)
      for (int32x4_t& sum : sums[r]) sum = vdupq_n_s32(tile.corrections[b * Rows + r]);
    for (int p = 0; p < Parts; ++p, group += kPartBytes)
      add_part<Rows, Parts>(group, tile.values + (b * Rows * Parts + p) * kPart, sums);
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

template <int Parts>
void multiply_tile(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  switch (tile.rows) {
    case 1: return multiply_blocks<1, Parts>(matrix, tile, group, y, stride, columns);
    case 2: return multiply_blocks<2, Parts>(matrix, tile, group, y, stride, columns);
    case 3: return multiply_blocks<3, Parts>(matrix, tile, group, y, stride, columns);
    default: return multiply_blocks<4, Parts>(matrix, tile, group, y, stride, columns);
  }
}

void multiply(const Matrix& matrix, const Tile& tile, const uint8_t* group, float* y, size_t stride, int columns) {
  switch (matrix.block) {
    case 32: return multiply_tile<1>(matrix, tile, group, y, stride, columns);
    case 64: return multiply_tile<2>(matrix, tile, group, y, stride, columns);
    default: return multiply_tile<4>(matrix, tile, group, y, stride, columns);
  }
}

void round(const Matrix& matrix, const float* x, const Tile& tile, int row) { round_row(matrix, x, tile, row); }

}  // namespace
}  // namespace pplex

PPLEX_END_TARGET

namespace pplex {
namespace {

bool runs_here() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

}  // namespace

const Level kNeonDot = {"neondot", 4, runs_here, round, multiply};

}  // namespace pplex
#endif
