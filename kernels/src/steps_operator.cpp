// The operator pplex::StepAttention of ONNX Runtime.
//
//   steps, one or more, each [B, 1, 3 * H * D] float32 -> [B, 1, H * D] float32;  attribute heads: H
//
// The newest step, the last input, attends to all: see attention.h.
#include <exception>

#include "attention.h"
#include "operators.h"
#include "ort_tensors.h"

namespace pplex {
namespace {

using Shape = std::vector<int64_t>;

struct Kernel {
  ort::Api api;
  int64_t heads;
};

ort::Status* read(const ort::Api& api, const ort::KernelContext* context, Shape* shape, std::vector<const float*>* steps) {
  size_t count = 0;
  if (auto* failure = api.call(ort::kKernelContextGetInputCount, context, &count)) return failure;
  for (size_t i = 0; i < count; ++i) {
    Shape found;
    const float* step = nullptr;
    if (auto* failure = input(api, context, i, &found, &step)) return failure;
    if (i && found != *shape) return failed(api, "StepAttention: the steps have different shapes.");
    *shape = found;
    steps->push_back(step);
  }
  return nullptr;
}

ort::Status* compute(void* data, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(data);
  const ort::Api& api = kernel.api;
  try {
    Shape shape;
    std::vector<const float*> steps;
    if (auto* failure = read(api, context, &shape, &steps)) return failure;
    if (shape.size() != 3 || shape[1] != 1 || shape[2] % (3 * kernel.heads))
      return failed(api, "StepAttention: a step is not [B, 1, 3 * H * D].");
    const Steps sizes{shape[0], kernel.heads, shape[2] / (3 * kernel.heads), int64_t(steps.size())};
    if (!sizes.valid()) return failed(api, "StepAttention: a head is not 16, 32, 64 or 128 wide, or there are over 512 steps.");
    shape[2] /= 3;
    float* y = nullptr;
    if (auto* failure = output(api, context, shape, &y)) return failure;
    SessionThreads threads{api, context};
    attend_steps(sizes, steps.data(), y, threads.pool());
    return threads.failure;
  } catch (const std::exception& error) {
    return failed(api, std::string("StepAttention: ") + error.what());
  }
}

ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo* info, void** made) {
  const ort::Api api{table};
  ort::Status* failure = nullptr;
  const int64_t heads = attribute(api, info, "heads", &failure);
  if (failure) return failure;
  if (heads <= 0) return failed(api, "StepAttention: heads must be positive.");
  *made = new Kernel{api, heads};
  return nullptr;
}

ort::CustomOp described() {
  ort::CustomOp op = processor_operator();
  op.name = [](const ort::CustomOp*) { return "StepAttention"; };
  op.input_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.input_count = [](const ort::CustomOp*) { return size_t(1); };
  op.input_characteristic = [](const ort::CustomOp*, size_t) { return ort::kVariadic; };
  op.variadic_input_minimum = [](const ort::CustomOp*) { return 1; };
  op.variadic_input_same_type = [](const ort::CustomOp*) { return 1; };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.create = create;
  op.compute_or_fail = compute;
  return op;
}

}  // namespace

const ort::CustomOp& steps_operator() {
  static const ort::CustomOp op = described();
  return op;
}

}  // namespace pplex
