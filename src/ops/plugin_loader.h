// Finding and opening the CUDA plug-in: the parts of load_cuda_plugin() (ops/device.h) that need no GPU. No
// libtorch.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "kernels/api/plugin.h"

namespace moebius::ops {

inline constexpr char kPluginFile[] = "libmoebius_cuda.so";

// What load_cuda_plugin() found.
struct PluginStatus {
  const kernels::Plugin* plugin = nullptr;  // null: CPU only
  std::string path;                         // where it was found, or empty
  std::string why;                          // why there is none, and the way out
};

// Places to look in, best first. With `named` (the value of MOEBIUS_CUDA_PLUGIN) only that one. Otherwise
// beside the program, then lib/moebius of its folder's parents: ../lib/moebius is the installed place, and
// test programs of a build tree lie a few folders deeper than the program.
std::vector<std::filesystem::path> plugin_candidates(const std::filesystem::path& program_folder,
                                                     const std::string& named);

// Opens the first candidate that exists and checks its interface version. Never throws. The library stays
// loaded for the life of the process. `libtorch_folder`: where libtorch_cpu.so was loaded from; its CUDA half
// is loaded from there first, so that the plug-in also works with a libtorch other than the one it was built
// beside.
PluginStatus open_plugin(const std::vector<std::filesystem::path>& candidates,
                         const std::filesystem::path& libtorch_folder);

// Empty when an NVIDIA driver can be loaded, otherwise what is missing.
std::string missing_driver();

}  // namespace moebius::ops
