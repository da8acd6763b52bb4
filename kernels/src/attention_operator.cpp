// The operator pplex::RingAttention of ONNX Runtime.
//
//   q [B, H, T, D], k and v [B, H, C, D], all float16; lengths [B] int64 -> [B, H, T, D] float16
//
// A query is causal, as in ONNX's Attention with is_causal and nonpad_kv_seqlen: see attention.h.
#include <exception>

#include "attention.h"
#include "operators.h"
#include "ort_tensors.h"

namespace pplex {
namespace {

using Shape = std::vector<int64_t>;

struct Inputs {
  Shape q_shape, k_shape, v_shape, lengths_shape;
  const uint16_t *q, *k, *v;
  const int64_t* lengths;
};

ort::Status* read(const ort::Api& api, const ort::KernelContext* context, Inputs* in) {
  if (auto* failure = input(api, context, 0, &in->q_shape, &in->q)) return failure;
  if (auto* failure = input(api, context, 1, &in->k_shape, &in->k)) return failure;
  if (auto* failure = input(api, context, 2, &in->v_shape, &in->v)) return failure;
  return input(api, context, 3, &in->lengths_shape, &in->lengths);
}

// What is wrong with the inputs, or an empty text.
std::string complaint(const Inputs& in) {
  const Shape &q = in.q_shape, &k = in.k_shape;
  if (q.size() != 4 || k.size() != 4) return "q and k do not have 4 axes";
  if (k != in.v_shape) return "k and v have different shapes";
  if (q[0] != k[0] || q[1] != k[1] || q[3] != k[3]) return "q and k have different slots, heads or widths";
  if (in.lengths_shape != Shape{q[0]}) return "lengths are not one number for each slot";
  if (!Rings{q[0], q[1], q[2], k[2], q[3]}.valid()) return "a head is not 16, 32, 64 or 128 wide";
  for (int64_t slot = 0; slot < q[0]; ++slot)
    if (in.lengths[slot] < 0 || in.lengths[slot] > k[2]) return "a length is negative, or larger than the ring";
  return "";
}

ort::Status* compute(void* data, ort::KernelContext* context) {
  const ort::Api& api = *static_cast<const ort::Api*>(data);
  try {
    Inputs in;
    if (auto* failure = read(api, context, &in)) return failure;
    const std::string wrong = complaint(in);
    if (!wrong.empty()) return failed(api, "RingAttention: " + wrong + ".");
    uint16_t* y = nullptr;
    if (auto* failure = output(api, context, in.q_shape, &y)) return failure;
    const Shape& q = in.q_shape;
    SessionThreads threads{api, context};
    attend({q[0], q[1], q[2], in.k_shape[2], q[3]}, in.q, in.k, in.v, in.lengths, y, threads.pool());
    return threads.failure;
  } catch (const std::exception& error) {
    return failed(api, std::string("RingAttention: ") + error.what());
  }
}

ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo*, void** made) {
  *made = new ort::Api{table};
  return nullptr;
}

ort::CustomOp described() {
  ort::CustomOp op = processor_operator();
  op.name = [](const ort::CustomOp*) { return "RingAttention"; };
  op.input_type = [](const ort::CustomOp*, size_t i) { return i == 3 ? ort::kInt64 : ort::kFloat16; };
  op.input_count = [](const ort::CustomOp*) { return size_t(4); };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat16; };
  op.destroy = [](void* api) { delete static_cast<ort::Api*>(api); };
  op.create = create;
  op.compute_or_fail = compute;
  return op;
}

}  // namespace

const ort::CustomOp& attention_operator() {
  static const ort::CustomOp op = described();
  return op;
}

}  // namespace pplex
