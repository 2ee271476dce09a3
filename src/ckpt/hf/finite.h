// Whether values are numbers: no NaN, no infinity.
#pragma once

#include <cstddef>
#include <span>

#include "ckpt/safetensors.h"

namespace moebius::ckpt::hf {

// `bytes`: values of a floating-point type (CHECK), one behind the other.
bool all_finite(DType dtype, std::span<const std::byte> bytes);

}  // namespace moebius::ckpt::hf
