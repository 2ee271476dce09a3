#include "train/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/units.h"
#include "moe/balance/load_log.h"
#include "ops/device.h"

namespace moebius::train {
namespace {

const std::array<const char*, 3> kPredictors = {"last", "mean:256", "linear"};
constexpr size_t kWarmUpSteps = 2;   // of a process: not counted in the median
constexpr size_t kRecentSteps = 20;  // for the speed shown and the balance in the summary

double mean(const std::deque<double>& values) {
  return values.empty()
             ? 0
             : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

void remember(std::deque<double>& values, double value) {
  values.push_back(value);
  if (values.size() > kRecentSteps) values.pop_front();
}

telemetry::ProgressOptions progress_options(const Report::Context& context) {
  telemetry::ProgressOptions options;
  options.total = context.config.train.steps;
  options.first = context.first_step;
  options.log_every = context.config.train.log_every;
  return options;
}

std::optional<int64_t> resumed_step(const Report::Context& context) {
  return context.first_step > 0 ? std::optional<int64_t>(context.first_step) : std::nullopt;
}

nlohmann::ordered_json layers_json(const std::vector<moe::LayerLoad>& layers) {
  nlohmann::ordered_json array = nlohmann::ordered_json::array();
  for (const moe::LayerLoad& layer : layers) {
    nlohmann::ordered_json entry;
    entry["layer"] = layer.layer;
    entry["max_violation"] = layer.max_violation;
    entry["entropy"] = layer.entropy;
    entry["dropped_slots"] = layer.dropped_slots;
    nlohmann::ordered_json load = nlohmann::ordered_json::array();
    for (const float share : layer.load) load.push_back(std::round(share * 1e4) / 1e4);
    entry["load"] = load;
    array.push_back(entry);
  }
  return array;
}

}  // namespace

int64_t peak_memory_bytes(at::Device device) {
  if (device.is_cuda()) return ops::cuda_plugin()->device_memory(device.index()).peak_allocated_bytes;
  const Result<ProcessMemory> memory = process_memory();
  return memory.ok() ? memory->peak_resident_bytes : 0;
}

Totals totals_until(const std::filesystem::path& metrics_file, int64_t step) {
  Totals totals;
  if (step == 0) return totals;
  std::ifstream file(metrics_file);
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || json.value("step", step + 1) > step) continue;
    totals.tokens = json.value("tokens", totals.tokens);
    totals.targets = json.value("targets", totals.targets);
    totals.train_seconds += json.value("step_seconds", 0.0);
    totals.skipped_steps += json.value("skipped", false);
  }
  return totals;
}

Report::Report(const Context& context, telemetry::TrainMetrics& metrics)
    : context_(context),
      metrics_(metrics),
      energy_({context.config.energy, context.run_dir, context.device, context.pci_bus_id, context.first_step,
               context.is_first},
              metrics) {
  if (!context.is_first) return;
  progress_.emplace(progress_options(context));
  jsonl_.emplace(context.run_dir / "metrics.jsonl", resumed_step(context));
  totals_ = totals_until(context.run_dir / "metrics.jsonl", context.first_step);
  if (context.first_step > 0 && context.config.train.forecast_horizon > 0) replay_forecasts();
}

std::vector<double> Report::forecast(const std::vector<moe::LayerLoad>& layers) {
  const int64_t horizon = context_.config.train.forecast_horizon;
  if (horizon == 0 || layers.empty()) return {};
  if (forecasts_.empty()) {
    for (const char* predictor : kPredictors) {
      auto& scores = forecasts_.emplace_back();
      for (const moe::LayerLoad& layer : layers)
        scores.emplace_back(predictor, static_cast<int64_t>(layer.load.size()), horizon);
    }
  }
  std::vector<double> errors(kPredictors.size());
  bool is_due = false;
  for (size_t i = 0; i < layers.size(); ++i) {
    std::vector<double> shares(layers[i].load.begin(), layers[i].load.end());
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    if (!(sum > 0)) return {};
    for (double& share : shares) share /= sum;
    for (size_t p = 0; p < kPredictors.size(); ++p) {
      const auto error = forecasts_[p][i].observe(shares);
      is_due = is_due || error.has_value();
      if (error) errors[p] += error->share / static_cast<double>(layers.size());
    }
  }
  return is_due ? errors : std::vector<double>();
}

void Report::replay_forecasts() {
  try {
    const moe::LoadLog log = moe::read_load_log(context_.run_dir / "metrics.jsonl");
    for (const moe::LoadLog::Step& step : log.steps) {
      std::vector<moe::LayerLoad> layers(step.shares.size());
      for (size_t i = 0; i < layers.size(); ++i)
        layers[i].load.assign(step.shares[i].begin(), step.shares[i].end());
      forecast(layers);
    }
  } catch (const UserError& error) {
    log_warn(error.what(), "; forecasts begin anew");
    forecasts_.clear();
  }
}

void Report::validation(int64_t step, const Evaluation& evaluation) {
  evaluation_ = {step, evaluation};
  evaluation_is_new_ = true;
  metrics_.validation_loss.set(evaluation.loss);
  std::string text = concat("step ", step, ": validation loss ", format_fixed(evaluation.loss, 4),
                            ", perplexity ", format_fixed(evaluation.perplexity, 3));
  if (evaluation.bits_per_byte > 0) {
    metrics_.validation_nats_per_byte.set(evaluation.bits_per_byte * 0.6931471805599453);
    text += concat(", ", format_fixed(evaluation.bits_per_byte, 4), " bits per byte");
  }
  if (evaluation.float_loss)
    text += concat(", without quantisation ", format_fixed(*evaluation.float_loss, 4));
  note(text);
}

std::optional<double> Report::validation_loss() const {
  if (!evaluation_ || evaluation_->first != last_.step) return std::nullopt;
  return evaluation_->second.loss;
}

void Report::step(const StepNumbers& numbers, double seconds, bool waited) {
  last_ = numbers;
  energy_.step(numbers.step, numbers.num_tokens, waited);
  totals_.tokens += numbers.num_tokens;
  totals_.targets += numbers.num_targets;
  totals_.train_seconds += seconds;
  totals_.skipped_steps += numbers.skipped;
  step_seconds_.push_back(seconds);
  waited_seconds_.push_back(numbers.waited_s);
  if (step_seconds_.size() == kWarmUpSteps + 1) recent_seconds_.clear();
  remember(recent_seconds_, seconds);
  remember(recent_violation_, numbers.max_violation());
  if (!context_.is_first) return;
  const double rate = static_cast<double>(numbers.num_tokens) / seconds;

  metrics_.step.set(static_cast<double>(numbers.step));
  metrics_.loss.set(numbers.loss);
  metrics_.learning_rate.set(numbers.learning_rate);
  metrics_.gradient_norm.set(numbers.gradient_norm);
  metrics_.tokens_per_second.set(rate);
  metrics_.tokens.add(static_cast<double>(numbers.num_tokens));
  metrics_.step_seconds.observe(seconds);
  if (numbers.skipped) metrics_.skipped_steps.add();
  for (const moe::LayerLoad& layer : numbers.layers) {
    for (size_t e = 0; e < layer.load.size(); ++e)
      metrics_.expert_load(layer.layer, static_cast<int64_t>(e)).set(layer.load[e]);
    metrics_.expert_max_violation(layer.layer).set(layer.max_violation);
    metrics_.router_entropy(layer.layer).set(layer.entropy);
    if (layer.dropped_slots > 0)
      metrics_.dropped_slots(layer.layer).add(static_cast<double>(layer.dropped_slots));
  }
  const Result<ProcessMemory> memory = process_memory();
  if (memory.ok()) {
    metrics_.resident_bytes.set(static_cast<double>(memory->resident_bytes));
    metrics_.peak_resident_bytes.set(static_cast<double>(memory->peak_resident_bytes));
  }

  nlohmann::ordered_json line;
  line["step"] = numbers.step;
  line["loss"] = numbers.loss;
  if (!numbers.layers.empty()) line["balance_loss"] = numbers.balance_loss;
  if (context_.config.model.mtp.depth > 0) line["mtp_loss"] = numbers.mtp_loss;
  line["learning_rate"] = numbers.learning_rate;
  line["gradient_norm"] = numbers.gradient_norm;
  line["tokens"] = totals_.tokens;
  line["targets"] = totals_.targets;
  line["step_seconds"] = seconds;
  line["tokens_per_second"] = rate;
  if (context_.num_ranks > 1) line["exposed_communication_seconds"] = numbers.waited_s;
  if (numbers.skipped) line["skipped"] = true;
  if (memory.ok()) line["resident_bytes"] = memory->resident_bytes;
  if (context_.device.is_cuda()) {
    const int64_t bytes = ops::cuda_plugin()->device_memory(context_.device.index()).allocated_bytes;
    line["device_memory_bytes"] = bytes;
    metrics_.device_memory_bytes().set(static_cast<double>(bytes));
  }
  if (const std::optional<double> joules = energy_.device_joules()) {
    line["energy_joules"] = *joules;
    metrics_.energy_joules().add(std::max(0.0, *joules - counted_joules_));
    counted_joules_ = std::max(counted_joules_, *joules);
  }
  if (!numbers.layers.empty()) {
    line["max_violation"] = numbers.max_violation();
    line["layers"] = layers_json(numbers.layers);
    const std::vector<double> errors = forecast(numbers.layers);
    for (size_t p = 0; p < errors.size(); ++p) {
      metrics_.forecast_error(kPredictors[p], context_.config.train.forecast_horizon).set(errors[p]);
      line["forecast_error"][kPredictors[p]] = errors[p];
    }
  }
  if (evaluation_is_new_ && evaluation_->first == numbers.step) {
    line["validation_loss"] = evaluation_->second.loss;
    line["validation_perplexity"] = evaluation_->second.perplexity;
    if (evaluation_->second.bits_per_byte > 0)
      line["validation_bits_per_byte"] = evaluation_->second.bits_per_byte;
    if (evaluation_->second.float_loss) line["validation_float_loss"] = *evaluation_->second.float_loss;
    evaluation_is_new_ = false;
  }
  jsonl_->write(line);
  if (progress_->due(numbers.step)) show(numbers);
}

void Report::show(const StepNumbers& numbers) {
  const double seconds = mean(recent_seconds_);
  const double rate = static_cast<double>(numbers.num_tokens) / seconds;
  telemetry::ProgressFields fields;
  fields.emplace_back("loss", numbers.skipped ? "not finite, skipped" : format_fixed(numbers.loss, 4));
  fields.emplace_back("", format_rate(rate, "tokens"));
  if (context_.peak_flops)
    fields.emplace_back("MFU",
                        format_fixed(100 * rate * context_.flops_per_token / *context_.peak_flops, 1) + " %");
  fields.emplace_back("", format_bytes(peak_memory_bytes(context_.device)));
  energy_.show(fields);
  if (!numbers.layers.empty()) fields.emplace_back("imbalance", format_fixed(numbers.max_violation(), 2));
  progress_->update(numbers.step, fields);
}

void Report::checkpoint(double seconds) {
  metrics_.checkpoint_seconds.observe(seconds);
}

void Report::finish() {
  if (progress_) progress_->finish();
  energy_.finish();
  if (jsonl_) jsonl_->sync();
}

double Report::median_of_steps(const std::vector<double>& values) {
  std::vector<double> sorted = values;
  if (sorted.size() > 2 * kWarmUpSteps) sorted.erase(sorted.begin(), sorted.begin() + kWarmUpSteps);
  if (sorted.empty()) return 0;
  std::nth_element(sorted.begin(), sorted.begin() + static_cast<int64_t>(sorted.size() / 2), sorted.end());
  return sorted[sorted.size() / 2];
}

void Report::write_summary(const Ending& ending) {
  if (!context_.is_first) return;
  nlohmann::ordered_json json;
  json["steps"] = last_.step;
  json["interrupted"] = ending.interrupted;
  json["tokens"] = totals_.tokens;
  json["targets"] = totals_.targets;
  json["train_seconds"] = totals_.train_seconds;
  json["wall_seconds"] = ending.wall_seconds;
  const double rate =
      totals_.train_seconds > 0 ? static_cast<double>(totals_.tokens) / totals_.train_seconds : 0;
  json["tokens_per_second"] = rate;
  json["targets_per_second"] =
      totals_.train_seconds > 0 ? static_cast<double>(totals_.targets) / totals_.train_seconds : 0;
  const double median = median_of_steps(step_seconds_);
  if (median > 0) {
    const double median_rate = static_cast<double>(last_.num_tokens) / median;
    json["median_step_seconds"] = median;
    json["median_tokens_per_second"] = median_rate;
    json["model_tflops"] = median_rate * context_.flops_per_token / 1e12;
    if (context_.num_ranks > 1)
      json["median_exposed_communication_seconds"] = median_of_steps(waited_seconds_);
    if (context_.num_ranks > 1 && context_.device.is_cpu())
      json["exposed_communication_share"] = median_of_steps(waited_seconds_) / median;
    if (context_.peak_flops) json["mfu"] = median_rate * context_.flops_per_token / *context_.peak_flops;
  }
  json["peak_memory_bytes"] = peak_memory_bytes(context_.device);
  json["train_loss"] = last_.loss;
  if (evaluation_ && evaluation_->first == last_.step) {
    json["validation_loss"] = evaluation_->second.loss;
    json["perplexity"] = evaluation_->second.perplexity;
    if (evaluation_->second.bits_per_byte > 0) json["bits_per_byte"] = evaluation_->second.bits_per_byte;
    if (evaluation_->second.float_loss) json["validation_float_loss"] = *evaluation_->second.float_loss;
  }
  if (!last_.layers.empty()) json["max_violation"] = mean(recent_violation_);
  json["skipped_steps"] = totals_.skipped_steps;
  json["data_wait_seconds"] = ending.data_wait_seconds;
  json["checkpoint_stall_seconds"] = ending.checkpoint_stall_seconds;
  energy_.add_summary(json);
  json["parameters"] = ending.parameters;
  json["active_parameters"] = ending.active_parameters;
  json["device"] = context_.device_name;
  json["threads"] = ending.num_threads;
  if (context_.num_ranks > 1) json["processes"] = context_.num_ranks;
  for (const auto& [axis, collectives] : ending.sent)
    for (const auto& [collective, traffic] : collectives)
      json["sent"][axis][collective] = {{"calls", traffic.calls}, {"bytes", traffic.sent_bytes}};
  for (const auto& [axis, seconds] : ending.waited_s) json["waited_seconds"][axis] = seconds;
  json["precision"] = context_.config.train.precision;
  write_file_atomic(context_.run_dir / "summary.json", json.dump(2) + "\n");
}

}  // namespace moebius::train
