#include "ops/device.h"

#include <ATen/ATen.h>

#include "base/check.h"
#include "base/error.h"

namespace moebius::ops {

const PluginStatus& load_cuda_plugin() {
  static const PluginStatus status{nullptr, "", "this build has no CUDA plug-in"};
  return status;
}

const kernels::Plugin* cuda_plugin() {
  return load_cuda_plugin().plugin;
}

at::Device choose_device(const std::string& word) {
  if (word == "cpu" || word == "auto") return at::kCPU;
  if (word == "cuda")
    throw_user_error("device 'cuda' was asked for, but ", load_cuda_plugin().why, "; use --device cpu");
  throw_user_error("unknown device '", word, "'; choose cpu, cuda or auto");
}

const kernels::KernelTable& kernel_table(at::Device device) {
  MOEBIUS_CHECK(device.is_cpu(), "no kernels for device ", device);
  return kernels::cpu_kernels();
}

kernels::Stream current_stream(at::Device) {
  return nullptr;
}

kernels::DType kernel_dtype(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat) return kernels::DType::f32;
  MOEBIUS_CHECK(tensor.scalar_type() == at::kBFloat16, "kernels take fp32 and bf16, not ",
                tensor.scalar_type());
  return kernels::DType::bf16;
}

}  // namespace moebius::ops
