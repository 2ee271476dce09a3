// The copies between a tensor of a Hugging Face checkpoint and its part of a parameter. Both directions are
// exact where the dtypes are the same.
#pragma once

#include <ATen/core/Tensor.h>

#include "ckpt/hf/piece.h"

namespace moebius::ckpt::hf {

// The elements of `param` that the piece stands for, as a view with the shape on disk; rotary pairs are still
// in our order.
at::Tensor view_of(const Piece& piece, const at::Tensor& param);

// param[piece] = disk, with a conversion of dtype. `disk` has the piece's shape.
void copy_from_disk(const Piece& piece, const at::Tensor& disk, const at::Tensor& param);

// The piece of `param` as it lies on disk: contiguous, of the parameter's dtype.
at::Tensor copy_to_disk(const Piece& piece, const at::Tensor& param);

}  // namespace moebius::ckpt::hf
