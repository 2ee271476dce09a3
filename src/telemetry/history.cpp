#include "telemetry/history.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

namespace moebius::telemetry {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::string key_of(const std::string& name, const Labels& labels) {
  std::string key = name;
  for (const auto& [label, value] : labels) key += (key == name ? "{" : ",") + label + "=\"" + value + "\"";
  return labels.empty() ? key : key + "}";
}

void keep_every_other(std::vector<double>& values) {
  size_t kept = 0;
  for (size_t i = 1; i < values.size(); i += 2) values[kept++] = values[i];
  values.resize(kept);
}

}  // namespace

void History::sample(double now_s) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!times_.empty() && now_s < times_.back() + interval_s_) return;
  if (times_.size() >= max_samples_) {
    keep_every_other(times_);
    for (auto& [key, values] : series_) keep_every_other(values);
    interval_s_ *= 2;
  }
  times_.push_back(now_s);
  for (const Family& family : registry_.collect()) {
    if (family.kind == MetricKind::histogram || family.samples.size() > kMaxSeriesOfFamily) continue;
    for (const Family::Sample& each : family.samples) {
      std::vector<double>& values = series_[key_of(family.name, each.labels)];
      values.resize(times_.size() - 1, kNone);
      values.push_back(each.value);
    }
  }
  for (auto& [key, values] : series_) values.resize(times_.size(), kNone);
}

std::string History::json() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto numbers = [](const std::vector<double>& values) {
    nlohmann::json list = nlohmann::json::array();
    for (const double each : values)
      list.push_back(std::isfinite(each) ? nlohmann::json(each) : nlohmann::json());
    return list;
  };
  nlohmann::json json = {{"times", numbers(times_)}, {"series", nlohmann::json::object()}};
  for (const auto& [key, values] : series_) json["series"][key] = numbers(values);
  return json.dump();
}

}  // namespace moebius::telemetry
