// The part of ONNX Runtime's C interface that the operator uses: its pip package brings no headers.
//
// Source: include/onnxruntime/core/session/onnxruntime_c_api.h. Entries of OrtApi never move and are never removed; a library
// states the version of the interface that it was written for, and older versions of ONNX Runtime refuse it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pplex::ort {

constexpr uint32_t kApiVersion = 17;  // the first with KernelContext_ParallelFor: ONNX Runtime 1.17

struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct Value;
struct TensorInfo;
struct CustomOp;

enum ErrorCode { kFail = 1, kInvalidArgument = 2 };
enum ElementType { kUndefined = 0, kFloat = 1, kUint8 = 2, kInt64 = 7, kFloat16 = 10 };
enum Characteristic { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum MemoryType { kDefaultMemory = 0 };

// OrtApi: a table of functions. The values are places in it.
enum Entry : size_t {
  kCreateStatus = 0,
  kCreateCustomOpDomain = 26,
  kCustomOpDomainAdd = 27,
  kAddCustomOpDomain = 28,
  kGetTensorMutableData = 51,
  kGetDimensionsCount = 61,
  kGetDimensions = 62,
  kGetTensorShapeElementCount = 64,
  kGetTensorTypeAndShape = 65,
  kKernelInfoGetAttributeFloat = 85,
  kKernelInfoGetAttributeInt64 = 86,
  kKernelContextGetInputCount = 88,
  kKernelContextGetInput = 90,
  kKernelContextGetOutput = 91,
  kReleaseTensorTypeAndShapeInfo = 99,
  kKernelInfoGetConstantInputTensor = 249,
  kKernelContextParallelFor = 274,
};

struct Api {
  const void* const* table;

  template <typename Result = Status*, typename... Arguments>
  Result call(Entry entry, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(const_cast<void*>(table[entry]))(arguments...);
  }
};

struct ApiBase {
  const void* const* (*get_api)(uint32_t version);
  const char* (*version)();
};

// OrtCustomOp of kApiVersion: later versions add entries at the end, which are not read for this one.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const void* const*, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void*, KernelContext*);
  void (*destroy)(void*);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  MemoryType (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_minimum)(const CustomOp*);
  int (*variadic_input_same_type)(const CustomOp*);
  int (*variadic_output_minimum)(const CustomOp*);
  int (*variadic_output_same_type)(const CustomOp*);
  Status* (*create)(const CustomOp*, const void* const*, const KernelInfo*, void** kernel);
  Status* (*compute_or_fail)(void* kernel, KernelContext*);
  Status* (*infer_shapes)(const CustomOp*, void*);
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
};

}  // namespace pplex::ort
