#include "ops/plugin_loader.h"

#include <dlfcn.h>

#include <system_error>

#include "base/concat.h"

namespace moebius::ops {
namespace {

namespace fs = std::filesystem;

std::string loader_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown error of the dynamic loader" : text;
}

bool is_file(const fs::path& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

std::string joined(const std::vector<fs::path>& paths) {
  std::string text;
  for (const fs::path& path : paths) text += concat(text.empty() ? "" : ", ", path.string());
  return text;
}

// Loads libtorch's CUDA half by its full path. A failure is no error here: the plug-in's own run path may
// still find one, and if not, its message names the library.
void preload_libtorch(const fs::path& folder) {
  for (const char* name : {"libc10_cuda.so", "libtorch_cuda.so"}) {
    const fs::path path = folder / name;
    if (is_file(path)) dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  }
}

}  // namespace

std::vector<fs::path> plugin_candidates(const fs::path& program_folder, const std::string& named) {
  if (!named.empty()) return {fs::path(named)};
  std::vector<fs::path> all{program_folder / kPluginFile};
  fs::path folder = program_folder;
  for (int depth = 0; depth < 3 && folder.has_relative_path(); ++depth) {
    folder = folder.parent_path();
    all.push_back(folder / "lib" / "moebius" / kPluginFile);
  }
  return all;
}

PluginStatus open_plugin(const std::vector<fs::path>& candidates, const fs::path& libtorch_folder) {
  PluginStatus status;
  const fs::path* found = nullptr;
  for (const fs::path& path : candidates) {
    if (is_file(path)) {
      found = &path;
      break;
    }
  }
  if (found == nullptr) {
    status.why = concat("the CUDA plug-in is not installed (looked for ", joined(candidates),
                        "); build it with nvcc of CUDA 13 present (./moebius build), or name it in "
                        "MOEBIUS_CUDA_PLUGIN");
    return status;
  }
  status.path = found->string();
  preload_libtorch(libtorch_folder);
  void* library = dlopen(found->c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    status.why =
        concat("the CUDA plug-in cannot be loaded: ", loader_error(),
               "; install the full set of libtorch 2.11 with its CUDA libraries (MOEBIUS_CUDA=on ./moebius "
               "build), or name its folders in LD_LIBRARY_PATH");
    return status;
  }
  const auto entry = reinterpret_cast<kernels::PluginEntry>(dlsym(library, kernels::kPluginEntry));
  if (entry == nullptr) {
    status.why = concat(status.path, " is not a CUDA plug-in of moebius (it has no ", kernels::kPluginEntry,
                        "); correct MOEBIUS_CUDA_PLUGIN or build again");
    return status;
  }
  const kernels::Plugin* plugin = entry();
  const int version = plugin == nullptr ? 0 : plugin->abi_version;
  if (version != kernels::kPluginAbiVersion) {
    status.why = concat("the CUDA plug-in ", status.path, " has interface version ", version,
                        " and this program needs ", kernels::kPluginAbiVersion,
                        "; build both again (./moebius build)");
    return status;
  }
  status.plugin = plugin;
  return status;
}

std::string missing_driver() {
  // The driver's library is left open: the CUDA runtime opens it again anyway.
  if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) != nullptr) return "";
  const std::string error = loader_error();
  if (is_file("/dev/nvidiactl") || fs::exists("/proc/driver/nvidia"))
    return concat("an NVIDIA driver runs here, but its library cannot be loaded: ", error,
                  "; install the driver's user-space part (libcuda1) or name its folder in LD_LIBRARY_PATH");
  return "no NVIDIA driver was found (libcuda.so.1); install the driver of the GPU, version 580 or later";
}

}  // namespace moebius::ops
