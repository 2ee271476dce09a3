// RAPL, the energy counters of Intel and AMD CPUs, through the kernel's powercap tree (Linux kernel
// documentation, "Power Capping Framework"). Linux; only read. Reading needs root since Linux 5.10
// (CVE-2020-8694), and virtual machines usually have no counters. The root of the tree is an argument so that
// tests can bring one.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"

namespace moebius::energy {

inline constexpr char kPowercap[] = "/sys/class/powercap";

struct RaplDomain {
  std::string name;  // the kernel's: "package-0", "dram", "core"
  std::filesystem::path counter;
  double range_joules = 0;  // the counter starts again at 0 behind this
  // Part of the host's energy: a package, or memory outside the package. The other domains lie inside a
  // package ("core", "uncore") or hold it ("psys"); adding them would count twice.
  bool counted = false;

  // What the counter shows; it starts anywhere and wraps.
  Result<double> joules() const;
};

struct RaplSurvey {
  std::vector<RaplDomain> domains;  // the readable ones, by name
  bool present = false;             // at least one counter exists
  std::string why;                  // why none can be read, and the way out; empty when at least one can
};
RaplSurvey survey_rapl(const std::filesystem::path& powercap = kPowercap);

}  // namespace moebius::energy
