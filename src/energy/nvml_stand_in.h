// How tests use the stand-in for NVML. Only for tests.
//
//   MOEBIUS_STAND_IN_GPUS          how many GPUs (1); they sit at 0000:3b:00.0, 0000:3c:00.0, …
//   MOEBIUS_STAND_IN_STATUS        what nvmlInit answers (0)
//   MOEBIUS_STAND_IN_QUERY_STATUS  what device queries answer (0)
//   MOEBIUS_STAND_IN_ENERGY        what the energy counter answers, call by call after nvmlInit: millijoules,
//                                  or "!15" for a status; the last one for ever. "5000 6000 !15"
//   MOEBIUS_STAND_IN_POWER         what the momentary power answers, likewise, in milliwatts (655500)
//   MOEBIUS_STAND_IN_POWER_SCOPE   "module": power is known only for the module
//   MOEBIUS_STAND_IN_MIG           1: the card is split
//   MOEBIUS_STAND_IN_STATE         folder in which locked clocks are kept, as gpu0.locked with "MHZ": what
//   was
//                                  locked outlives the process, as on a real GPU; none: they cannot be locked
//   MOEBIUS_STAND_IN_LOCK_STATUS   what locking and resetting answer (0)
//   MOEBIUS_STAND_IN_SWITCH_MS     how long the clock reads as before after a change (0); "never": a change
//                                  is answered with success and swallowed
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace moebius::energy {

// Beside the build; where that is gone (a packed build) the loader looks for it by name.
inline std::string built_or_named(const std::filesystem::path& file) {
  return std::filesystem::exists(file) ? file.string() : file.filename().string();
}

// Variables of the environment that are gone again at the end.
class StandInSettings {
 public:
  void set(const std::string& name, const std::string& value) {
    names_.push_back("MOEBIUS_STAND_IN_" + name);
    setenv(names_.back().c_str(), value.c_str(), 1);
  }
  StandInSettings() = default;
  ~StandInSettings() {
    for (const std::string& name : names_) unsetenv(name.c_str());
  }
  StandInSettings(const StandInSettings&) = delete;
  StandInSettings& operator=(const StandInSettings&) = delete;

 private:
  std::vector<std::string> names_;
};

}  // namespace moebius::energy
