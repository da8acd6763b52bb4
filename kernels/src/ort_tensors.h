// What our operators share: errors, shapes and addresses of tensors, ONNX Runtime's threads.
#pragma once

#include <climits>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "pool.h"

namespace pplex {

inline ort::Status* failed(const ort::Api& api, const std::string& text) {
  return api.call(ort::kCreateStatus, ort::kInvalidArgument, text.c_str());
}

// An attribute; 0 after the first failure.
inline int64_t attribute(const ort::Api& api, const ort::KernelInfo* info, const char* name, ort::Status** failure) {
  int64_t value = 0;
  if (!*failure) *failure = api.call(ort::kKernelInfoGetAttributeInt64, info, name, &value);
  return value;
}

// Shape of a tensor. The information is freed also after a failure.
inline ort::Status* shape_of(const ort::Api& api, const ort::Value* value, std::vector<int64_t>* shape) {
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

inline int64_t size_of(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (int64_t one : shape) size *= one;
  return size;
}

// Where a tensor's numbers are.
template <typename T>
ort::Status* data_of(const ort::Api& api, const ort::Value* value, T** data) {
  void* found = nullptr;
  ort::Status* failure = api.call(ort::kGetTensorMutableData, const_cast<ort::Value*>(value), &found);
  *data = static_cast<T*>(found);
  return failure;
}

// Shape and numbers of an operator's input.
template <typename T>
ort::Status* input(const ort::Api& api, const ort::KernelContext* context, size_t index, std::vector<int64_t>* shape,
                   const T** data) {
  const ort::Value* value = nullptr;
  if (ort::Status* failure = api.call(ort::kKernelContextGetInput, context, index, &value)) return failure;
  if (ort::Status* failure = shape_of(api, value, shape)) return failure;
  return data_of(api, value, data);
}

// The same of an input that may be missing: data is then nullptr.
template <typename T>
ort::Status* optional_input(const ort::Api& api, const ort::KernelContext* context, size_t index,
                            std::vector<int64_t>* shape, const T** data) {
  size_t count = 0;
  if (ort::Status* failure = api.call(ort::kKernelContextGetInputCount, context, &count)) return failure;
  if (index >= count) return nullptr;
  const ort::Value* value = nullptr;
  if (ort::Status* failure = api.call(ort::kKernelContextGetInput, context, index, &value)) return failure;
  return value ? input(api, context, index, shape, data) : nullptr;
}

// Numbers of an operator's only output, which gets this shape.
template <typename T>
ort::Status* output(const ort::Api& api, ort::KernelContext* context, const std::vector<int64_t>& shape, T** data) {
  ort::Value* value = nullptr;
  ort::Status* failure =
      api.call(ort::kKernelContextGetOutput, context, size_t(0), shape.data(), shape.size(), &value);
  return failure ? failure : data_of(api, value, data);
}

// The threads of the session that runs an operator.
struct SessionThreads {
  const ort::Api& api;
  const ort::KernelContext* context;
  ort::Status* failure = nullptr;

  Pool pool() { return {this, run}; }

 private:
  static void run(void* data, void (*task)(void*, size_t), size_t count, void* argument) {
    auto& threads = *static_cast<SessionThreads*>(data);
    // As many batches as tasks: a thread that is done takes the next task.
    if (!threads.failure)
      threads.failure = threads.api.call(ort::kKernelContextParallelFor, threads.context, task, count, count, argument);
  }
};

// An operator for the processor with one output. The caller adds name, inputs, types, create and compute.
inline ort::CustomOp processor_operator() {
  ort::CustomOp op{};
  op.version = ort::kApiVersion;
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.output_count = [](const ort::CustomOp*) { return size_t(1); };
  op.input_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.output_characteristic = [](const ort::CustomOp*, size_t) { return ort::kRequired; };
  op.input_memory = [](const ort::CustomOp*, size_t) { return ort::kDefaultMemory; };
  op.first_version = [](const ort::CustomOp*) { return 1; };
  op.last_version = [](const ort::CustomOp*) { return INT_MAX; };
  return op;
}

}  // namespace pplex
