// The operator pplex::MatMulInt4 of ONNX Runtime.
//
//   x [..., K] float32, packed weights uint8 (constant, layout.h) -> [..., N] float32;  attributes K, N, block
#include <climits>
#include <exception>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "product.h"

namespace pplex {
namespace {

using ort::Api;

struct Kernel {
  Api api;
  Matrix matrix;
  const uint8_t* packed;
};



ort::Status* failed(const Api& api, const std::string& text) {
  return api.call(ort::kCreateStatus, ort::kInvalidArgument, text.c_str());
}

int64_t attribute(const Api& api, const ort::KernelInfo* info, const char* name, ort::Status** failure) {
  int64_t value = 0;
  if (!*failure) *failure = api.call(ort::kKernelInfoGetAttributeInt64, info, name, &value);
  return value;
}

// Shape of a tensor. The information is freed also after a failure.
ort::Status* shape_of(const Api& api, const ort::Value* value, std::vector<int64_t>* shape) {
  ort::TensorInfo* info = nullptr;
  if (ort::Status* failure = api.call(ort::kGetTensorTypeAndShape, value, &info)) return failure;
  size_t count = 0;
  ort::Status* failure = api.call(ort::kGetDimensionsCount, static_cast<const ort::TensorInfo*>(info), &count);
  if (!failure) {
    shape->resize(count);
    failure = api.call(ort::kGetDimensions, static_cast<const ort::TensorInfo*>(info), shape->data(), count);
  }
  api.call<void>(ort::kReleaseTensorTypeAndShapeInfo, info);
  return failure;
}

int64_t size_of(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (int64_t one : shape) size *= one;
  return size;
}

// The kernel keeps the weights' address: ONNX Runtime keeps constants where they are.
ort::Status* find_weights(const ort::KernelInfo* info, Kernel* kernel) {
  const Api& api = kernel->api;
  int constant = 0;
  const ort::Value* value = nullptr;
  if (auto* failure = api.call(ort::kKernelInfoGetConstantInputTensor, info, size_t(1), &constant, &value)) return failure;
  if (!constant) return failed(api, "MatMulInt4: the packed weights are not a constant.");
  std::vector<int64_t> shape;
  if (auto* failure = shape_of(api, value, &shape)) return failure;
  const Matrix& matrix = kernel->matrix;
  const int64_t expected = matrix.groups() * int64_t(matrix.group_bytes());
  if (size_of(shape) != expected)
    return failed(api, "MatMulInt4: " + std::to_string(size_of(shape)) + " bytes of packed weights, not " +
                           std::to_string(expected) + ".");
  void* data = nullptr;
  if (auto* failure = api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &data)) return failure;
  kernel->packed = static_cast<const uint8_t*>(data);
  return nullptr;
}

ort::Status* create(const ort::CustomOp*, const void* const* table, const ort::KernelInfo* info, void** made) {
  Kernel kernel{{table}, {}, nullptr};
  ort::Status* failure = nullptr;
  kernel.matrix.inputs = attribute(kernel.api, info, "K", &failure);
  kernel.matrix.outputs = attribute(kernel.api, info, "N", &failure);
  kernel.matrix.block = attribute(kernel.api, info, "block", &failure);
  if (failure) return failure;
  if (!kernel.matrix.valid())
    return failed(kernel.api, "MatMulInt4: K and N must be positive, and block 32, 64 or 128 and a divisor of K.");
  if ((failure = find_weights(info, &kernel))) return failure;
  *made = new Kernel(kernel);
  return nullptr;
}

struct Call {
  const Api& api;
  const ort::KernelContext* context;
  ort::Status* failure;
};

void run_in_pool(void* data, void (*task)(void*, size_t), size_t count, void* argument) {
  Call& call = *static_cast<Call*>(data);
  // As many batches as tasks: a thread that is done takes the next task.
  if (!call.failure)
    call.failure = call.api.call(ort::kKernelContextParallelFor, call.context, task, count, count, argument);
}

ort::Status* compute(void* data, ort::KernelContext* context) {
  const Kernel& kernel = *static_cast<const Kernel*>(data);
  const Api& api = kernel.api;
  try {
    const ort::Value* x = nullptr;
    const auto* constant = static_cast<const ort::KernelContext*>(context);
    if (auto* failure = api.call(ort::kKernelContextGetInput, constant, size_t(0), &x)) return failure;
    std::vector<int64_t> shape;
    if (auto* failure = shape_of(api, x, &shape)) return failure;
    if (shape.empty() || shape.back() != kernel.matrix.inputs)
      return failed(api, "MatMulInt4: the last axis of x is not " + std::to_string(kernel.matrix.inputs) + " long.");
    const int64_t rows = size_of(shape) / kernel.matrix.inputs;
    shape.back() = kernel.matrix.outputs;
    ort::Value* y = nullptr;
    auto* failure = api.call(ort::kKernelContextGetOutput, context, size_t(0),
                             static_cast<const int64_t*>(shape.data()), shape.size(), &y);
    if (failure) return failure;
    void *from = nullptr, *to = nullptr;
    if ((failure = api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(x), &from))) return failure;
    if ((failure = api.call(ort::kGetTensorMutableData, y, &to))) return failure;
    Call call{api, context, nullptr};
    multiply(kernel.matrix, kernel.packed, static_cast<const float*>(from), rows, static_cast<float*>(to),
             {&call, run_in_pool});
    return call.failure;
  } catch (const std::exception& error) {
    return failed(api, std::string("MatMulInt4: ") + error.what());
  }
}

void destroy(void* kernel) { delete static_cast<Kernel*>(kernel); }

ort::CustomOp described() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.name = [](const ort::CustomOp*) { return "MatMulInt4"; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };  // the processor's
  op.input_type = [](const ort::CustomOp*, size_t i) { return i ? ort::kUint8 : ort::kFloat; };
  op.input_count = [](const ort::CustomOp*) { return size_t(2); };
  op.output_type = [](const ort::CustomOp*, size_t) { return ort::kFloat; };
  op.output_count = [](const ort::CustomOp*) { return size_t(1); };
  op.destroy = destroy;
  op.input_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return ort::kDefaultMemory; };
  op.create = create;
  op.compute_or_fail = compute;
  op.first_version = [](const ort::CustomOp*) { return 1; };
  op.last_version = [](const ort::CustomOp*) { return INT_MAX; };
  return op;
}

}  // namespace
}  // namespace pplex

// ONNX Runtime calls this when the library is registered.
extern "C" __attribute__((visibility("default"))) pplex::ort::Status* RegisterCustomOps(
    pplex::ort::SessionOptions* options, const pplex::ort::ApiBase* base) {
  using namespace pplex;
  static const ort::CustomOp op = described();
  const ort::Api oldest{base->get_api(1)}, api{base->get_api(ort::kApiVersion)};
  if (!api.table) return failed(oldest, "MatMulInt4 needs ONNX Runtime 1.17 or newer.");
  ort::CustomOpDomain* domain = nullptr;  // used by sessions until the process ends, so it is never freed
  if (auto* failure = api.call(ort::kCreateCustomOpDomain, "pplex", &domain)) return failure;
  if (auto* failure = api.call(ort::kCustomOpDomainAdd, domain, &op)) return failure;
  return api.call(ort::kAddCustomOpDomain, options, domain);
}
