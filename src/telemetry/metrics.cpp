#include "telemetry/metrics.h"

#include <algorithm>

#include "base/check.h"

namespace moebius::telemetry {
namespace {

bool is_name(const std::string& name, bool colon_allowed) {
  if (name.empty() || (name[0] >= '0' && name[0] <= '9')) return false;
  return std::all_of(name.begin(), name.end(), [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           (c == ':' && colon_allowed);
  });
}

}  // namespace

void Counter::add(double amount) {
  MOEBIUS_CHECK_GE(amount, 0.0, "a counter only grows");
  value_.fetch_add(amount, std::memory_order_relaxed);
}

void Counter::advance_to(double total) {
  if (const double missing = total - value(); missing > 0) add(missing);
}

void Gauge::set(double value) {
  value_.store(value, std::memory_order_relaxed);
  is_set_.store(true, std::memory_order_release);
}

Histogram::Histogram(std::vector<double> bounds)
    : bounds_(std::move(bounds)), counts_(std::make_unique<std::atomic<uint64_t>[]>(bounds_.size() + 1)) {
  MOEBIUS_CHECK(!bounds_.empty(), "a histogram needs bounds");
  for (size_t i = 1; i < bounds_.size(); ++i)
    MOEBIUS_CHECK_LT(bounds_[i - 1], bounds_[i], "bounds must ascend");
}

void Histogram::observe(double value) {
  const size_t bucket =
      static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin());
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

Histogram::Snapshot Histogram::snapshot() const {
  Snapshot snapshot{bounds_, {}, 0, sum_.load(std::memory_order_relaxed)};
  for (size_t i = 0; i <= bounds_.size(); ++i) {
    snapshot.counts.push_back(counts_[i].load(std::memory_order_relaxed));
    snapshot.count += snapshot.counts.back();
  }
  return snapshot;
}

std::vector<double> exponential_bounds(double first, double factor, int count) {
  std::vector<double> bounds;
  for (int i = 0; i < count; ++i, first *= factor) bounds.push_back(first);
  return bounds;
}

Registry::Series& Registry::find(const std::string& name, const std::string& help, MetricKind kind,
                                 const std::vector<double>& bounds, const Labels& labels) {
  auto [entry, is_new] = entries_.try_emplace(name, Entry{help, kind, bounds, {}});
  if (is_new) {
    MOEBIUS_CHECK(is_name(name, true), "'", name, "' is no metric name");
    MOEBIUS_CHECK_EQ(name.ends_with("_total"), kind == MetricKind::counter,
                     "counters, and only they, end in _total: ", name);
  }
  MOEBIUS_CHECK(entry->second.kind == kind, "metric '", name, "' is used with two kinds");
  for (const auto& [label, value] : labels)
    MOEBIUS_CHECK(is_name(label, false), "'", label, "' is no label name");
  Series& series = entry->second.series[labels];
  series.labels = labels;
  return series;
}

Counter& Registry::counter(const std::string& name, const std::string& help, const Labels& labels) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& counter = find(name, help, MetricKind::counter, {}, labels).counter;
  if (!counter) counter = std::make_unique<Counter>();
  return *counter;
}

Gauge& Registry::gauge(const std::string& name, const std::string& help, const Labels& labels) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& gauge = find(name, help, MetricKind::gauge, {}, labels).gauge;
  if (!gauge) gauge = std::make_unique<Gauge>();
  return *gauge;
}

Histogram& Registry::histogram(const std::string& name, const std::string& help,
                               const std::vector<double>& bounds, const Labels& labels) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto& histogram = find(name, help, MetricKind::histogram, bounds, labels).histogram;
  if (!histogram) histogram = std::make_unique<Histogram>(entries_.at(name).bounds);
  return *histogram;
}

std::vector<Family> Registry::collect() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<Family> families;
  for (const auto& [name, entry] : entries_) {
    Family family{name, entry.help, entry.kind, {}};
    for (const auto& [labels, series] : entry.series) {
      Family::Sample sample;
      sample.labels = labels;
      if (series.counter) sample.value = series.counter->value();
      if (series.gauge && !series.gauge->is_set()) continue;
      if (series.gauge) sample.value = series.gauge->value();
      if (series.histogram) sample.histogram = series.histogram->snapshot();
      family.samples.push_back(std::move(sample));
    }
    if (!family.samples.empty()) families.push_back(std::move(family));
  }
  return families;
}

}  // namespace moebius::telemetry
