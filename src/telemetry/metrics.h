// Counters, gauges and histograms of the running process, in the data model of Prometheus. Updating one is a
// few atomic instructions and is safe from any thread; looking one up takes a lock and a search, so keep the
// reference.
//
//   Gauge& loss = registry.gauge("moebius_train_loss", "Mean loss of the last step, nats per token.");
//   loss.set(2.31);
//
// Names follow Prometheus' rules: base units in the name (_seconds, _bytes), counters end in _total.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace moebius::telemetry {

// Ordered as given; one metric is identified by its name and all its labels.
using Labels = std::vector<std::pair<std::string, std::string>>;

// Only grows.
class Counter {
 public:
  void add(double amount = 1);
  // For a sum that is kept elsewhere: grows to `total`, and stays where that is less. One thread.
  void advance_to(double total);
  double value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<double> value_{0};
};

// Not exported until it was set once.
class Gauge {
 public:
  void set(double value);
  double value() const { return value_.load(std::memory_order_relaxed); }
  bool is_set() const { return is_set_.load(std::memory_order_acquire); }

 private:
  std::atomic<double> value_{0};
  std::atomic<bool> is_set_{false};
};

class Histogram {
 public:
  // Ascending upper bounds (inclusive); a last bucket takes what is above.
  explicit Histogram(std::vector<double> bounds);
  void observe(double value);

  struct Snapshot {
    std::vector<double> bounds;
    std::vector<uint64_t> counts;  // one per bound, then those above; not cumulative
    uint64_t count = 0;
    double sum = 0;
  };
  // The buckets of one moment; an observation made meanwhile may be in the buckets and not yet in the sum.
  Snapshot snapshot() const;

 private:
  std::vector<double> bounds_;
  std::unique_ptr<std::atomic<uint64_t>[]> counts_;
  std::atomic<double> sum_{0};
};

// first, first * factor, …: `count` bounds.
std::vector<double> exponential_bounds(double first, double factor, int count);

enum class MetricKind : uint8_t { counter, gauge, histogram };

// All metrics of one name, as they are now.
struct Family {
  struct Sample {
    Labels labels;
    double value = 0;               // counter, gauge
    Histogram::Snapshot histogram;  // histogram
  };
  std::string name, help;
  MetricKind kind;
  std::vector<Sample> samples;
};

class Registry {
 public:
  Registry() = default;
  Registry(const Registry&) = delete;
  Registry& operator=(const Registry&) = delete;

  // The metric of this name and these labels, made at the first call. The reference lives as long as the
  // registry. A name used with two kinds, or against the rules of Prometheus, is a bug (CHECK).
  Counter& counter(const std::string& name, const std::string& help, const Labels& labels = {});
  Gauge& gauge(const std::string& name, const std::string& help, const Labels& labels = {});
  // `bounds` of the first call for a name hold for all its labels.
  Histogram& histogram(const std::string& name, const std::string& help, const std::vector<double>& bounds,
                       const Labels& labels = {});

  // Everything, families in order of name.
  std::vector<Family> collect() const;

 private:
  struct Series {
    Labels labels;
    std::unique_ptr<Counter> counter;
    std::unique_ptr<Gauge> gauge;
    std::unique_ptr<Histogram> histogram;
  };
  struct Entry {
    std::string help;
    MetricKind kind;
    std::vector<double> bounds;
    std::map<Labels, Series> series;
  };
  Series& find(const std::string& name, const std::string& help, MetricKind kind,
               const std::vector<double>& bounds, const Labels& labels);

  mutable std::mutex mutex_;
  std::map<std::string, Entry> entries_;
};

}  // namespace moebius::telemetry
