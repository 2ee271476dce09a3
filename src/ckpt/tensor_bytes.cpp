#include "ckpt/tensor_bytes.h"

#include <ATen/ATen.h>

#include "base/check.h"

namespace moebius::ckpt {
namespace {

DType dtype_of(const std::string& name, at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return DType::f64;
    case at::kFloat:
      return DType::f32;
    case at::kHalf:
      return DType::f16;
    case at::kBFloat16:
      return DType::bf16;
    case at::kLong:
      return DType::i64;
    case at::kInt:
      return DType::i32;
    case at::kShort:
      return DType::i16;
    case at::kChar:
      return DType::i8;
    case at::kByte:
      return DType::u8;
    case at::kBool:
      return DType::boolean;
    default:
      break;
  }
  MOEBIUS_CHECK(false, "tensor ", name, " has dtype ", at::toString(type), ", which checkpoints cannot hold");
}

}  // namespace

at::ScalarType scalar_type_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return at::kDouble;
    case DType::f32:
      return at::kFloat;
    case DType::f16:
      return at::kHalf;
    case DType::bf16:
      return at::kBFloat16;
    case DType::i64:
      return at::kLong;
    case DType::i32:
      return at::kInt;
    case DType::i16:
      return at::kShort;
    case DType::i8:
      return at::kChar;
    case DType::u8:
      return at::kByte;
    case DType::boolean:
      return at::kBool;
    case DType::f8_e4m3:
      return at::kFloat8_e4m3fn;
  }
  return at::kByte;
}

TensorSpec spec_of(const std::string& name, const at::Tensor& tensor) {
  MOEBIUS_CHECK(tensor.defined(), "tensor ", name, " is not allocated");
  return {name, dtype_of(name, tensor.scalar_type()), tensor.sizes().vec()};
}

at::Tensor flat_bytes(const at::Tensor& tensor) {
  return tensor.detach().contiguous().flatten().view(at::kByte);
}

void emit_bytes(const at::Tensor& tensor, const ByteSink& sink) {
  const at::Tensor bytes = flat_bytes(tensor).cpu();
  sink({static_cast<const std::byte*>(bytes.const_data_ptr()), static_cast<size_t>(bytes.numel())});
}

void assign_bytes(const at::Tensor& tensor, std::span<const std::byte> bytes) {
  const at::Tensor target = tensor.detach();
  MOEBIUS_CHECK_EQ(static_cast<size_t>(target.nbytes()), bytes.size());
  if (bytes.empty()) return;
  // The map is read-only; from_blob has no const form, and copy_ only reads its source.
  const at::Tensor source =
      at::from_blob(const_cast<std::byte*>(bytes.data()), {static_cast<int64_t>(bytes.size())},
                    at::TensorOptions().dtype(at::kByte));
  if (target.is_contiguous()) {
    target.flatten().view(at::kByte).copy_(source);
  } else {
    target.copy_(source.clone().view(target.scalar_type()).view(target.sizes()));
  }
}

}  // namespace moebius::ckpt
