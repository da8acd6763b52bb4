#include "attention.h"

#include "levels.h"

namespace pplex {
namespace {

constexpr int64_t kSerialSlots = 2;  // so few slots take less time than other threads need to wake up

struct Work {
  const Level& level;
  const Rings& rings;
  const uint16_t *q, *k, *v;
  const int64_t* lengths;
  uint16_t* y;
};

void attend_one(void* data, size_t index) {
  const Work& work = *static_cast<const Work*>(data);
  const Rings& rings = work.rings;
  const size_t queries = index * size_t(rings.steps * rings.width), entries = index * size_t(rings.entries * rings.width);
  const int64_t count = work.lengths[index / size_t(rings.heads)];
  work.level.attend(
      {work.q + queries, work.k + entries, work.v + entries, rings.steps, rings.width, count, work.y + queries});
}

struct StepsWork {
  const Level& level;
  const Steps& sizes;
  const float* const* steps;
  float* y;
};

void attend_slot(void* data, size_t slot) {
  const StepsWork& work = *static_cast<const StepsWork*>(data);
  const Steps& sizes = work.sizes;
  const int64_t all = sizes.heads * sizes.width;
  for (int64_t head = 0; head < sizes.heads; ++head) {
    const int64_t q = int64_t(slot) * 3 * all + head * sizes.width;
    float* y = work.y + int64_t(slot) * all + head * sizes.width;
    work.level.attend_steps({work.steps, int(sizes.count), sizes.width, q, q + all, q + 2 * all, y});
  }
}

}  // namespace

void attend_steps(const Steps& sizes, const float* const* steps, float* y, const Pool& pool) {
  StepsWork work{level(), sizes, steps, y};
  if (sizes.slots > kSerialSlots) return pool.run(pool.context, attend_slot, size_t(sizes.slots), &work);
  for (int64_t slot = 0; slot < sizes.slots; ++slot) attend_slot(&work, size_t(slot));
}

void attend(const Rings& rings, const uint16_t* q, const uint16_t* k, const uint16_t* v, const int64_t* lengths,
            uint16_t* y, const Pool& pool) {
  Work work{level(), rings, q, k, v, lengths, y};
  const size_t heads = size_t(rings.slots * rings.heads);
  if (heads > 0 && rings.steps > 0) pool.run(pool.context, attend_one, heads, &work);
}

}  // namespace pplex
