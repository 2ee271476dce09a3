#include "cli/kernel_profile.h"

#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "ops/device.h"

namespace moebius::cli {
namespace {

namespace profiler = torch::autograd::profiler;
using torch::profiler::impl::ActivityType;

struct Pattern {
  const char* part;
  const char* phase;
};

// The first that is a part of the name counts.
constexpr Pattern kPatterns[] = {
    {"sdpa", "attention"},
    {"flash_", "attention"},
    {"fmha", "attention"},
    {"moebius::kernels::cuda::grouped", "grouped products"},
    {"grouped_", "grouped products"},
    {"GroupProblemShape", "grouped products"},
    {"moebius_grouped", "grouped products"},
    {"prepare_grouped_gemm", "grouped products"},
    {"adamw", "optimizer"},
    {"sum_squares", "optimizer"},
    {"sum_partials", "optimizer"},
    {"rms_norm", "norms"},
    {"rope", "rotation and norms of heads"},
    {"cross_entropy", "loss"},
    {"swiglu", "activation"},
    {"gather_rows", "rows to experts and back"},
    {"combine_rows", "rows to experts and back"},
    {"slots", "rows to experts and back"},
    {"route", "routing"},
    {"stats", "routing"},
    {"count_kernel", "routing"},
    {"scan_kernel", "routing"},
    {"rank_kernel", "routing"},
    {"nvjet", "dense products"},
    {"gemm", "dense products"},
    {"cutlass", "dense products"},
    {"cublas", "dense products"},
    {"splitKreduce", "dense products"},
    {"embedding", "embedding"},
    {"index", "embedding"},
    {"Memcpy", "copies"},
    {"Memset", "copies"},
    {"copy", "copies"},
    {"reduce_kernel", "sums of libtorch"},
    {"elementwise", "elementwise operators of libtorch"},
};

// "void a::b<c>::kernel<float, 4>(int)" as "kernel".
std::string short_name(const std::string& full) {
  std::string name;
  int depth = 0;
  for (const char c : full) {
    if (c == '(' && depth == 0 && !name.empty()) break;
    if (c == '<') ++depth;
    if (depth == 0) name += c;
    if (c == '>') --depth;
  }
  for (const char* prefix : {"void ", "at::native::", "moebius::kernels::cuda::"})
    if (const size_t at = name.find(prefix); at != std::string::npos)
      name.erase(at, std::string(prefix).size());
  while (!name.empty() && (name.back() == ' ' || name.back() == ':')) name.pop_back();
  return name.empty() ? full.substr(0, 80) : name.substr(0, 80);
}

}  // namespace

std::string phase_of(const std::string& kernel) {
  for (const Pattern& pattern : kPatterns)
    if (kernel.find(pattern.part) != std::string::npos) return pattern.phase;
  return "other";
}

std::vector<KernelTime> profile_kernels(const std::function<void()>& body, at::Device device) {
  const bool on_cuda = device.is_cuda();
  std::set<ActivityType> activities{ActivityType::CPU};
  if (on_cuda) activities = {ActivityType::CPU, ActivityType::CUDA};
  const torch::profiler::impl::ProfilerConfig config(torch::profiler::impl::ProfilerState::KINETO);
  profiler::prepareProfiler(config, activities);
  profiler::enableProfiler(config, activities, {at::RecordScope::FUNCTION});
  body();
  if (on_cuda) ops::cuda_plugin()->synchronize(device.index());
  const auto result = profiler::disableProfiler();
  std::map<std::string, KernelTime> by_name;
  for (const profiler::KinetoEvent& event : result->events()) {
    if (event.deviceType() != device.type()) continue;
    const std::string phase = phase_of(event.name()), name = short_name(event.name());
    KernelTime& kernel = by_name[phase + name];
    kernel.name = name;
    kernel.phase = phase;
    ++kernel.calls;
    kernel.ms += 1e-6 * static_cast<double>(event.durationNs());
  }
  std::vector<KernelTime> kernels;
  for (auto& [key, kernel] : by_name) kernels.push_back(std::move(kernel));
  std::sort(kernels.begin(), kernels.end(),
            [](const KernelTime& a, const KernelTime& b) { return a.ms > b.ms; });
  return kernels;
}

std::string profile_text(const std::vector<KernelTime>& kernels, int calls, size_t count) {
  if (kernels.empty()) return "  no kernels: the driver lets nobody profile here\n";
  double all = 0;
  std::map<std::string, KernelTime> phases;
  for (const KernelTime& kernel : kernels) {
    all += kernel.ms;
    KernelTime& phase = phases[kernel.phase];
    phase.calls += kernel.calls;
    phase.ms += kernel.ms;
  }
  std::vector<std::pair<std::string, KernelTime>> sorted(phases.begin(), phases.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const auto& a, const auto& b) { return a.second.ms > b.second.ms; });
  char line[256];
  std::string text;
  const auto add = [&](const std::string& name, const KernelTime& time, const char* of) {
    std::snprintf(line, sizeof line, "  %9.4f ms %5.1f %% %8.1f x  %s%s%s\n", time.ms / calls,
                  100 * time.ms / all, static_cast<double>(time.calls) / calls, name.c_str(),
                  *of == 0 ? "" : "  of ", of);
    text += line;
  };
  KernelTime whole;
  whole.ms = all;
  for (const auto& [name, time] : sorted) whole.calls += time.calls;
  add("all kernels", whole, "");
  for (const auto& [name, time] : sorted) add(name, time, "");
  if (count > 0) text += "  the longest kernels\n";
  for (size_t i = 0; i < std::min(count, kernels.size()); ++i)
    add(kernels[i].name, kernels[i], kernels[i].phase.c_str());
  return text;
}

}  // namespace moebius::cli
