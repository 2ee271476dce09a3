#include "ops/device.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <dlfcn.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "base/check.h"
#include "base/error.h"
#include "ops/product_table.h"

namespace moebius::ops {
namespace {

namespace fs = std::filesystem;

fs::path program_folder() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  return error ? fs::current_path(error) : program.parent_path();
}

// Where the loaded libtorch lies: the folder of the library that holds one of its functions.
fs::path libtorch_folder() {
  Dl_info info{};
  const auto symbol = reinterpret_cast<const void*>(&at::get_num_threads);
  if (dladdr(symbol, &info) == 0 || info.dli_fname == nullptr) return {};
  std::error_code error;
  const fs::path path = fs::canonical(info.dli_fname, error);
  return error ? fs::path() : path.parent_path();
}

PluginStatus find_plugin() {
  PluginStatus status;
  status.why = missing_driver();
  if (!status.why.empty()) return status;
  const char* named = std::getenv("MOEBIUS_CUDA_PLUGIN");
  status = open_plugin(plugin_candidates(program_folder(), named == nullptr ? "" : named), libtorch_folder());
  if (status.plugin != nullptr && status.plugin->device_count() == 0) {
    status.plugin = nullptr;
    status.why = "the NVIDIA driver offers no GPU to this process; see nvidia-smi and CUDA_VISIBLE_DEVICES";
  }
  return status;
}

}  // namespace

const PluginStatus& load_cuda_plugin() {
  static const PluginStatus status = [] {
    try {
      return find_plugin();
    } catch (const std::exception& error) {
      return PluginStatus{nullptr, "", error.what()};
    }
  }();
  return status;
}

const kernels::Plugin* cuda_plugin() {
  return load_cuda_plugin().plugin;
}

namespace {

at::Device gpu_of(int local_rank) {
  const kernels::Plugin& plugin = *cuda_plugin();
  plugin.prefer_cudnn_attention(true);
  const int index = local_rank % plugin.device_count();
  // The first is the thread's already; to say so would take memory on it.
  if (index > 0) plugin.set_device(index);
  static const bool kTableIsRead = [&] {
    kernels::DeviceInfo info{};
    if (plugin.device_info(index, &info)) use_default_product_table(info.name);
    return true;
  }();
  static_cast<void>(kTableIsRead);
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

}  // namespace

void use_product_table_of(const std::string& file, at::Device device) {
  kernels::DeviceInfo info{};
  if (file.empty() || device.is_cpu() || !cuda_plugin()->device_info(device.index(), &info)) return;
  use_product_table(file, info.name);
}

at::Device choose_device(const std::string& word, int local_rank) {
  if (word == "cpu") return at::kCPU;
  if (word == "auto") return cuda_plugin() == nullptr ? at::Device(at::kCPU) : gpu_of(local_rank);
  if (word == "cuda") {
    if (cuda_plugin() == nullptr)
      throw_user_error("device 'cuda' was asked for, but ", load_cuda_plugin().why, "; or use --device cpu");
    return gpu_of(local_rank);
  }
  throw_user_error("unknown device '", word, "'; choose cpu, cuda or auto");
}

const kernels::KernelTable& kernel_table(at::Device device) {
  if (device.is_cpu()) return kernels::cpu_kernels();
  MOEBIUS_CHECK(device.is_cuda() && cuda_plugin() != nullptr, "no kernels for device ", device, ": ",
                load_cuda_plugin().why);
  return *cuda_plugin()->kernels;
}

kernels::Stream current_stream(at::Device device) {
  if (device.is_cpu()) return nullptr;
  MOEBIUS_CHECK(device.is_cuda() && cuda_plugin() != nullptr, "no stream for device ", device);
  return cuda_plugin()->current_stream(device.index());
}

kernels::DType kernel_dtype(const at::Tensor& tensor) {
  if (tensor.scalar_type() == at::kFloat) return kernels::DType::f32;
  MOEBIUS_CHECK(tensor.scalar_type() == at::kBFloat16, "kernels take fp32 and bf16, not ",
                tensor.scalar_type());
  return kernels::DType::bf16;
}

}  // namespace moebius::ops
