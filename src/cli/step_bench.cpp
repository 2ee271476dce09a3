#include "cli/step_bench.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "cli/layer_timing.h"
#include "data/batches.h"
#include "train/flops.h"
#include "train/int8_experts.h"
#include "train/model_files.h"
#include "train/optimizer.h"
#include "train/step.h"

namespace moebius::cli {
namespace {

constexpr int64_t kWarmUpSteps = 3;

// A model in training on random tokens.
class Training {
 public:
  Training(const config::RunConfig& config, at::Device device)
      : config_(config),
        model_(train::make_model(config_, device)),
        optimizer_(config_.optimizer, model_->params()),
        int8_experts_(train::Int8Experts::attach(config_, *model_)),
        step_(config_, *model_, optimizer_),
        source_(static_cast<uint64_t>(config_.train.seed), {config_.train.sequence, config_.train.batch,
                                                            config_.train.micro_batch, config_.model.vocab}),
        batches_(static_cast<size_t>(config_.train.batch / config_.train.micro_batch)) {
    if (int8_experts_) step_.follow(*int8_experts_);
  }

  train::PendingNumbers queue(int64_t step) {
    for (size_t micro = 0; micro < batches_.size(); ++micro)
      source_.fill(step - 1, static_cast<int64_t>(micro), batches_[micro]);
    return step_.run(step, batches_);
  }

 private:
  const config::RunConfig config_;
  std::unique_ptr<nn::Decoder> model_;
  train::AdamW optimizer_;
  std::unique_ptr<train::Int8Experts> int8_experts_;
  train::TrainStep step_;
  data::SyntheticBatches source_;
  std::vector<data::Batch> batches_;
};

config::RunConfig with_micro_batch(const config::RunConfig& config) {
  config::RunConfig full = config;
  if (full.train.micro_batch == 0) full.train.micro_batch = full.train.batch;
  return full;
}

}  // namespace

StepTimes time_steps(const config::RunConfig& config, at::Device device) {
  MOEBIUS_CHECK_GE(config.train.steps, kWarmUpSteps + 1);
  train::check_precision(config, 1);
  StepTimes times;
  const MemoryMeter memory(device);
  std::vector<double> seconds;
  {
    Training training(with_micro_batch(config), device);
    std::optional<train::PendingNumbers> pending;
    double began = steady_seconds();
    const auto settle = [&] {
      if (!pending) return;
      times.loss = pending->get().loss;
      const double now = steady_seconds();
      seconds.push_back(now - began);
      began = now;
    };
    for (int64_t step = 1; step <= config.train.steps; ++step) {
      train::PendingNumbers next = training.queue(step);
      settle();
      pending = std::move(next);
    }
    settle();
  }
  times.peak_bytes = memory.peak_bytes();
  seconds.erase(seconds.begin(), seconds.begin() + kWarmUpSteps);
  const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  times.step_ms = 1e3 * *middle;
  times.tokens_per_second = static_cast<double>(config.train.batch * config.train.sequence) / *middle;
  times.model_flops =
      times.tokens_per_second * train::model_flops_per_token(config.model, config.train.sequence);
  return times;
}

std::vector<KernelTime> profile_steps(const config::RunConfig& config, int64_t steps, at::Device device) {
  Training training(with_micro_batch(config), device);
  for (int64_t step = 1; step <= kWarmUpSteps; ++step) training.queue(step).get();
  return profile_kernels(
      [&] {
        for (int64_t step = kWarmUpSteps + 1; step <= kWarmUpSteps + steps; ++step)
          training.queue(step).get();
      },
      device);
}

bool steps_repeat(const config::RunConfig& config, int64_t steps, at::Device device) {
  std::vector<double> numbers[2];
  for (std::vector<double>& run : numbers) {
    Training training(with_micro_batch(config), device);
    for (int64_t step = 1; step <= steps; ++step) {
      const train::StepNumbers each = training.queue(step).get();
      run.push_back(each.loss);
      run.push_back(each.gradient_norm);
    }
  }
  return numbers[0] == numbers[1];
}

}  // namespace moebius::cli
