// The operator pplex::MatMulPacked of ONNX Runtime.
//
//   x [..., K] float32, packed weights uint8 (constant, layout.h) -> y [..., N] float32;  attributes K, N, block, bits
//
// Optional, and all in float32: the weights [K] of an RMSNorm of x, with the attribute epsilon; a tensor that is added to y, of
// its shape; with the attribute gated 1, x is [..., 2 K], and SwiGLU's gate makes [..., K] of it.
#include <exception>

#include "operators.h"
#include "ort_tensors.h"
#include "product.h"

namespace pplex {
namespace {

using ort::Api;

struct Kernel {
  Api api;
  Matrix matrix;
  const uint8_t* packed;
  float epsilon;
  bool gated;
};

// The kernel keeps the weights' address: ONNX Runtime keeps constants where they are.
ort::Status* find_weights(const ort::KernelInfo* info, Kernel* kernel) {
  const Api& api = kernel->api;
  int constant = 0;
  const ort::Value* value = nullptr;
  if (auto* failure = api.call(ort::kKernelInfoGetConstantInputTensor, info, size_t(1), &constant, &value)) return failure;
  if (!constant) return failed(api, "MatMulPacked: the packed weights are not a constant.");
  std::vector<int64_t> shape;
  if (auto* failure = shape_of(api, value, &shape)) return failure;
  const Matrix& matrix = kernel->matrix;
  const int64_t expected = matrix.groups() * int64_t(matrix.group_bytes());
  if (size_of(shape) != expected)
    return failed(api, "MatMulPacked: " + std::to_string(size_of(shape)) + " bytes of packed weights, not " +
                           std::to_string(expected) + ".");
  return data_of(api, value, &kernel->packed);
}

ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo* info, void** made) {
  Kernel kernel{{table}, {}, nullptr, 0.0f, false};
  ort::Status* failure = nullptr;
  kernel.matrix.inputs = attribute(kernel.api, info, "K", &failure);
  kernel.matrix.outputs = attribute(kernel.api, info, "N", &failure);
  kernel.matrix.block = attribute(kernel.api, info, "block", &failure);
  kernel.matrix.bits = attribute(kernel.api, info, "bits", &failure);
  kernel.gated = attribute(kernel.api, info, "gated", &failure) != 0;
  if (!failure) failure = kernel.api.call(ort::kKernelInfoGetAttributeFloat, info, "epsilon", &kernel.epsilon);
  if (failure) return failure;
  if (!kernel.matrix.valid())
    return failed(kernel.api, "MatMulPacked: K and N must be positive, bits 4 or 8, and block 32, 64 or 128 and a divisor of K.");
  if ((failure = find_weights(info, &kernel))) return failure;
  *made = new Kernel(kernel);
  return nullptr;
}

ort::Status* compute(void* data, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(data);
  const Api& api = kernel.api;
  try {
    std::vector<int64_t> shape, norm_shape, added_shape;
    Rows rows{nullptr, 0, {nullptr, kernel.epsilon, kernel.gated}, nullptr};
    if (auto* failure = input(api, context, 0, &shape, &rows.x)) return failure;
    if (auto* failure = optional_input(api, context, 2, &norm_shape, &rows.prologue.norm)) return failure;
    if (auto* failure = optional_input(api, context, 3, &added_shape, &rows.added)) return failure;
    const int64_t width = rows.prologue.width(kernel.matrix.inputs);
    if (shape.empty() || shape.back() != width)
      return failed(api, "MatMulPacked: the last axis of x is not " + std::to_string(width) + " long.");
    rows.count = size_of(shape) / width;
    shape.back() = kernel.matrix.outputs;
    if (rows.prologue.norm && (kernel.gated || norm_shape != std::vector<int64_t>{kernel.matrix.inputs}))
      return failed(api, "MatMulPacked: the norm's weights are not [K], or x is gated, too.");
    if (rows.added && added_shape != shape) return failed(api, "MatMulPacked: what is added does not have y's shape.");
    float* y = nullptr;
    if (auto* failure = output(api, context, shape, &y)) return failure;
    SessionThreads threads{api, context};
    multiply(kernel.matrix, kernel.packed, rows, y, threads.pool());
    return threads.failure;
  } catch (const std::exception& error) {
    return failed(api, std::string("MatMulPacked: ") + error.what());
  }
}

ort::CustomOp described() {
  ort::CustomOp op = processor_operator();
  op.name = [](const ort::CustomOp*) { return "MatMulPacked"; };
  op.input_type = [](const ort::CustomOp*, size_t i) { return i == 1 ? ort::kUint8 : ort::kFloat; };
  op.input_count = [](const ort::CustomOp*) { return size_t(4); };
  op.input_characteristic = [](const ort::CustomOp*, size_t i) { return i < 2 ? ort::kRequired : ort::kOptional; };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.destroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.create = create;
  op.compute_or_fail = compute;
  return op;
}

}  // namespace

const ort::CustomOp& product_operator() {
  static const ort::CustomOp op = described();
  return op;
}

}  // namespace pplex
