// ONNX Runtime finds the operators here.
#include "operators.h"
#include "ort_tensors.h"

// ONNX Runtime calls this when the library is registered.
extern "C" __attribute__((visibility("default"))) pplex::ort::Status* RegisterCustomOps(
    pplex::ort::SessionOptions* options, const pplex::ort::ApiBase* base) {
  using namespace pplex;
  const ort::Api oldest{base->get_api(1)}, api{base->get_api(ort::kApiVersion)};
  if (!api.table) return failed(oldest, "pplex's operators need ONNX Runtime 1.17 or newer.");
  ort::CustomOpDomain* domain = nullptr;  // used by sessions until the process ends, so it is never freed
  if (auto* failure = api.call(ort::kCreateCustomOpDomain, "pplex", &domain)) return failure;
  for (const ort::CustomOp* op : {&product_operator(), &attention_operator(), &steps_operator()})
    if (auto* failure = api.call(ort::kCustomOpDomainAdd, domain, op)) return failure;
  return api.call(ort::kAddCustomOpDomain, options, domain);
}
