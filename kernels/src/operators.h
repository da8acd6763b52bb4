// The operators of the library.
#pragma once

#include "ort_abi.h"

namespace pplex {

const ort::CustomOp& product_operator();
const ort::CustomOp& attention_operator();
const ort::CustomOp& steps_operator();

}  // namespace pplex
