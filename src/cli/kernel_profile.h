// Where the time of a GPU goes, kernel by kernel, as the driver measures it (CUPTI through libtorch's
// profiler).
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace moebius::cli {

struct KernelTime {
  std::string name;   // without template arguments and namespaces of libraries
  std::string phase;  // phase_of(its full name)
  int64_t calls = 0;
  double ms = 0;
};

// What a kernel belongs to: "grouped products", "attention", "optimizer", … "other". By the names that this
// program's kernels and those of cuBLAS, cuDNN, CUTLASS and libtorch have.
std::string phase_of(const std::string& kernel);

// Runs `body` and waits for it; the kernels and copies that it has queued, longest first. On the CPU the
// operators of libtorch by their own names, nested ones counted in both. Empty when the driver lets nobody
// profile.
std::vector<KernelTime> profile_kernels(const std::function<void()>& body, at::Device device);

// A table by phase and one of the `count` longest kernels, times divided by `calls` of what was profiled.
std::string profile_text(const std::vector<KernelTime>& kernels, int calls, size_t count);

}  // namespace moebius::cli
