// What the routers did over an optimizer step, summed over its micro-batches on the device, and the loss-free
// bias that answers it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "config/model_config.h"
#include "moe/balance/bias_rule.h"
#include "nn/feed_forward.h"
#include "nn/param.h"

namespace moebius::moe {

// The same on the host, for one layer.
struct LayerLoad {
  int64_t layer = 0;
  std::vector<float> load;   // of each expert, as a multiple of the mean load
  double max_violation = 0;  // max load / mean load - 1
  double entropy = 0;        // nats, mean over tokens
  int64_t dropped_slots = 0;
};

class LoadStatistics final : public nn::RoutingObserver {
 public:
  LoadStatistics(const config::ModelConfig& config, at::Device device);

  void observe(int64_t layer, const at::Tensor& counts_E, const at::Tensor& entropy,
               const at::Tensor& offsets_E1, int64_t num_slots) override;
  // Forgets the step.
  void reset();

  bool empty() const { return layers_.empty(); }
  // (layers with experts, E + 2) fp32 on the device: counts, sum of entropies, dropped slots.
  const at::Tensor& packed() const { return packed_; }
  // Reads a host copy of packed(), made after `num_micro` micro-batches.
  std::vector<LayerLoad> unpack(const at::Tensor& packed_on_cpu, int64_t num_micro) const;

  // Loss-free balancing (Wang et al. 2024): bias_e += rate * sign(mean load - load_e), then recentred to zero
  // mean. `scale`, an fp32 scalar: nothing changes when it is not finite (the step was skipped). Of layers
  // that are on another stage of a pipeline there is no bias here.
  void update_bias(nn::ParamTable& params, double rate, const at::Tensor& scale) const;
  // By rules on the host, one per layer with experts, those of other stages included: waits for the device.
  void update_bias(nn::ParamTable& params, std::vector<ForecastBias>& rules) const;
  int64_t num_layers() const { return static_cast<int64_t>(layers_.size()); }

 private:
  // Null: on another stage.
  nn::Param* bias_of(nn::ParamTable& params, size_t i) const;

  std::vector<int64_t> layers_;  // those with experts
  int64_t num_experts_;
  at::Tensor packed_;
};

}  // namespace moebius::moe
