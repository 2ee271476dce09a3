// Work of a quantisation that has been done so far, in a folder beside the run to be made, so that one that
// was killed goes on where it was: weight after weight, its codes, scales and what was measured of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

#include "ckpt/run_lock.h"
#include "ckpt/writer.h"
#include "train/quantise.h"

namespace moebius::train {

class QuantiseSpool {
 public:
  // The folder of a run to be made. `identity` says all that the work depends on; what lies there of other
  // work is removed, which is said. UserError when another process is at it.
  QuantiseSpool(const std::filesystem::path& run_dir, const std::string& identity);

  // Whether this weight is done, and what was found of it then.
  bool holds(const std::string& name) const;
  QuantisedWeight report(const std::string& name) const;
  int64_t num_held() const;

  // Keeps a weight, durably when this returns. `emit` hands over its codes, and then its scales.
  void keep(const QuantisedWeight& report, const std::function<void(const ckpt::ByteSink&)>& emit);

  // A tensor of the checkpoint: `num_bytes` of a weight that is held, from `first` on. The object must
  // outlive it.
  ckpt::PendingTensor pending(const std::string& name, const ckpt::TensorSpec& spec, int64_t first) const;

  // The run is complete.
  void remove();

 private:
  std::filesystem::path file(const std::string& name, const char* ending) const;

  std::filesystem::path folder_;
  std::optional<ckpt::RunLock> lock_;
};

std::string to_json(const QuantisedWeight& weight);
QuantisedWeight quantised_weight_from(const std::string& json);

}  // namespace moebius::train
