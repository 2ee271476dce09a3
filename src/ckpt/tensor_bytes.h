// Between at::Tensor and bytes in files, for ckpt and for what gathers tensors before they are written
// (train/sharded_state.h).
#pragma once

#include <ATen/core/Tensor.h>

#include "ckpt/safetensors.h"
#include "ckpt/writer.h"

namespace moebius::ckpt {

// libtorch's name of a dtype.
at::ScalarType scalar_type_of(DType dtype);

// Name, dtype and shape as they are saved. A dtype that safetensors lacks is a bug of the caller (CHECK).
TensorSpec spec_of(const std::string& name, const at::Tensor& tensor);

// The tensor's values in row-major order as a flat kByte tensor on the same device; a view when it is
// contiguous.
at::Tensor flat_bytes(const at::Tensor& tensor);

// Hands the bytes over, through a host copy when the tensor lies on a device.
void emit_bytes(const at::Tensor& tensor, const ByteSink& sink);

// Fills the tensor (any strides, any device) with bytes that were its values in row-major order.
void assign_bytes(const at::Tensor& tensor, std::span<const std::byte> bytes);

}  // namespace moebius::ckpt
