// Small tensors of every dtype and shape kind for the tests of ckpt. Only for tests.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"

namespace moebius::ckpt {

// "model": all dtypes with a matrix, a scalar and an empty tensor each; "optimizer": some moments. Values are
// random bytes, so that NaN payloads, denormals and negative zeros occur.
std::vector<TensorGroup> example_groups(uint64_t seed);

// The same names, shapes and dtypes, all zero.
std::vector<TensorGroup> zeros_like(const std::vector<TensorGroup>& groups);

// Bit for bit; returns the name of the first tensor that differs, "" when none does.
std::string first_difference(const std::vector<TensorGroup>& a, const std::vector<TensorGroup>& b);

// Every file below the folder with its contents.
std::map<std::string, std::string> contents_of(const std::filesystem::path& folder);

}  // namespace moebius::ckpt
