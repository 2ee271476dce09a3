// Which kernels serve a tensor, and the CUDA plug-in's life.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "kernels/api/plugin.h"
#include "kernels/api/table.h"
#include "ops/plugin_loader.h"

namespace moebius::ops {

// Loads libmoebius_cuda.so when an NVIDIA driver is present, before any tensor exists (libtorch remembers "no
// CUDA" from its first operator on). Call once, first thing in main. Never throws; `why` tells what was
// missing. The plug-in is looked for beside the binary and in ../lib/moebius, or at MOEBIUS_CUDA_PLUGIN when
// that is set. Where it is looked for and why there is none: ops/plugin_loader.h.
const PluginStatus& load_cuda_plugin();

// The plug-in, or null. Valid after load_cuda_plugin().
const kernels::Plugin* cuda_plugin();

// Device for a user's word: "cpu", "cuda", "auto". On a GPU cuDNN becomes the first choice for attention. The
// process with number `local_rank` of several on this machine gets the GPU of that number, counted round
// those that it sees, for the calling thread too. Throws UserError when cuda is asked for and absent.
at::Device choose_device(const std::string& word, int local_rank = 0);

// Uses the table of measured products in a file (ops/product_table.h) on a GPU; nothing for an empty name or
// on the CPU. choose_device has read the user's own before.
void use_product_table_of(const std::string& file, at::Device device);

// Kernels and stream for tensors on this device.
const kernels::KernelTable& kernel_table(at::Device device);
kernels::Stream current_stream(at::Device device);

// fp32 and bf16 only; CHECK otherwise.
kernels::DType kernel_dtype(const at::Tensor& tensor);

}  // namespace moebius::ops
