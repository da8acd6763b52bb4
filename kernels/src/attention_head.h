// Attention of one head. Included by each level, inside its target, after a header that defines Lanes: 16 numbers in float32.
//
// All levels give the same bits: they take the same sums in the same order, with the same roundings.
#pragma once

#include "attention.h"

namespace pplex {
namespace {

constexpr int kEntries = kMostSteps;  // of a ring whose scores are held at a time
constexpr float kNone = -__builtin_inff();

static inline float exponential_of(float x) {
  float lanes[kLanes];
  exponential(Lanes::all(x)).to(lanes);
  return lanes[0];
}

// What a query has read so far: sums over entries of exp(score - largest), alone and times the entry's value.
template <int Parts>
struct Reading {
  float largest = kNone, total = 0.0f;
  float values[kLanes * Parts] = {};

  // Part p of the result.
  Lanes mean(int p) const {
    return times(Lanes::of(values + kLanes * p), Lanes::all(total == 0.0f ? 0.0f : 1.0f / total));
  }

  // From now on relative to another largest score.
  void rescale(float to) {
    const float factor = largest == kNone ? 0.0f : exponential_of(largest - to);
    for (float& value : values) value *= factor;
    total *= factor;
    largest = to;
  }
};

static inline Lanes loaded(const float* x) { return Lanes::of(x); }
static inline Lanes loaded(const uint16_t* x) { return Lanes::of_half(x); }

// Scores of the first `count` entries: the dot products of their keys with the queries.
template <int Parts, int Queries, typename Keys>
void score(const float (*q)[kLanes * Parts], Keys key_of, int count, float (*scores)[kEntries]) {
  for (int i = 0; i < count; ++i) {
    const auto* k = key_of(i);
    Lanes products[Queries];
    for (Lanes& product : products) product = Lanes::all(0.0f);
    for (int p = 0; p < Parts; ++p) {
      const Lanes key = loaded(k + kLanes * p);
      for (int j = 0; j < Queries; ++j) products[j] = fused(key, Lanes::of(q[j] + kLanes * p), products[j]);
    }
    for (int j = 0; j < Queries; ++j) scores[j][i] = products[j].sum();
  }
}

static inline float largest_of(const float* scores, int count) {
  Lanes most = Lanes::all(kNone);
  for (int i = 0; i < count; i += kLanes) most = larger(Lanes::of(scores + i), most);  // NaN changes nothing
  float lanes[kLanes], largest = kNone;
  most.to(lanes);
  for (float one : lanes) largest = one > largest ? one : largest;
  return largest;
}

// Turns the scores into exp(score - largest).
template <int Parts>
void weigh(float* scores, int count, Reading<Parts>* reading) {
  const int filled = (count + kLanes - 1) / kLanes * kLanes;
  for (int i = count; i < filled; ++i) scores[i] = kNone;
  const float largest = largest_of(scores, filled);
  if (!(reading->largest >= largest)) reading->rescale(largest);
  Lanes sum = Lanes::all(0.0f);
  for (int i = 0; i < filled; i += kLanes) {
    const Lanes weights = exponential(plus(Lanes::of(scores + i), Lanes::all(-reading->largest)));
    sum = plus(sum, weights);
    weights.to(scores + i);
  }
  reading->total += sum.sum();
}

template <int Parts, typename Values>
void add_values(Values value_of, const float* weights, int count, float* values) {
  Lanes sums[Parts];
  for (int p = 0; p < Parts; ++p) sums[p] = Lanes::of(values + kLanes * p);
  for (int i = 0; i < count; ++i) {
    const auto* v = value_of(i);
    const Lanes weight = Lanes::all(weights[i]);
    for (int p = 0; p < Parts; ++p) sums[p] = fused(weight, loaded(v + kLanes * p), sums[p]);
  }
  for (int p = 0; p < Parts; ++p) sums[p].to(values + kLanes * p);
}

// Attention of `Queries` queries from query `first` on.
template <int Parts, int Queries>
void attend_queries(const Head& head, int64_t first) {
  constexpr int64_t kWidth = kLanes * Parts;
  float q[Queries][kWidth], scores[Queries][kEntries];
  Reading<Parts> readings[Queries];
  const Lanes scale = Lanes::all(1.0f / __builtin_sqrtf(float(kWidth)));
  for (int j = 0; j < Queries; ++j)
    for (int p = 0; p < Parts; ++p)
      times(Lanes::of_half(head.q + (first + j) * kWidth + kLanes * p), scale).to(q[j] + kLanes * p);
  const int64_t less = head.steps - first - Queries;  // entries that the last of these queries does not read yet
  for (int64_t start = 0; start < head.count - less; start += kEntries) {
    const int64_t end = head.count - less - start;
    const auto key_of = [&](int i) { return head.k + (start + i) * kWidth; };
    const auto value_of = [&](int i) { return head.v + (start + i) * kWidth; };
    score<Parts, Queries>(q, key_of, int(end < kEntries ? end : kEntries), scores);
    for (int j = 0; j < Queries; ++j) {
      const int64_t left = end - (Queries - 1 - j);
      if (left <= 0) continue;
      const int count = int(left < kEntries ? left : kEntries);
      weigh(scores[j], count, readings + j);
      add_values<Parts>(value_of, scores[j], count, readings[j].values);
    }
  }
  for (int j = 0; j < Queries; ++j)
    for (int p = 0; p < Parts; ++p) readings[j].mean(p).to_half(head.y + (first + j) * kWidth + kLanes * p);
}

template <int Parts>
void attend_steps_of(const StepsHead& head) {
  constexpr int kWidth = kLanes * Parts;
  float q[1][kWidth], scores[1][kEntries];
  Reading<Parts> reading;
  const Lanes scale = Lanes::all(1.0f / __builtin_sqrtf(float(kWidth)));
  for (int p = 0; p < Parts; ++p)
    times(Lanes::of(head.steps[head.count - 1] + head.q + kLanes * p), scale).to(q[0] + kLanes * p);
  score<Parts, 1>(q, [&](int i) { return head.steps[i] + head.k; }, head.count, scores);
  weigh(scores[0], head.count, &reading);
  add_values<Parts>([&](int i) { return head.steps[i] + head.v; }, scores[0], head.count, reading.values);
  for (int p = 0; p < Parts; ++p) reading.mean(p).to(head.y + kLanes * p);
}

void attend_steps(const StepsHead& head) {
  switch (head.width) {
    case 16: return attend_steps_of<1>(head);
    case 32: return attend_steps_of<2>(head);
    case 64: return attend_steps_of<4>(head);
    default: return attend_steps_of<8>(head);
  }
}

template <int Parts>
void attend_head(const Head& head) {
  int64_t step = 0;
  for (; step + 2 <= head.steps; step += 2) attend_queries<Parts, 2>(head, step);
  if (step < head.steps) attend_queries<Parts, 1>(head, step);
}

void attend(const Head& head) {
  switch (head.width) {
    case 16: return attend_head<1>(head);
    case 32: return attend_head<2>(head);
    case 64: return attend_head<4>(head);
    default: return attend_head<8>(head);
  }
}

}  // namespace
}  // namespace pplex
