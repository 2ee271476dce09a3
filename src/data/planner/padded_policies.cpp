#include <algorithm>
#include <bit>
#include <deque>
#include <map>
#include <utility>

#include "base/check.h"
#include "data/planner/planner.h"

namespace moebius::data {
namespace {

class PadPlanner : public Planner {
 public:
  PadPlanner(std::unique_ptr<DocumentStream> from, const PlanShape& shape, const CostModel& cost)
      : Planner(std::move(from), shape, cost) {}

 protected:
  void plan(std::vector<MicroBatchPlan>& micro_batches) override {
    for (MicroBatchPlan& each : micro_batches) {
      for (int64_t row = 0; row < shape().rows; ++row) {
        const auto piece = stream().next();
        if (!piece) return;
        each.pieces.push_back(*piece);
        each.arrivals.push_back(num_arrived_++);
        each.row_length = shape().context;
        each.tokens += piece->length;
        each.padding += each.row_length - piece->length;
        each.cost += cost().of(each.row_length);
      }
    }
  }
  std::vector<Pending> pending() const override { return {}; }
  std::vector<int64_t> numbers() const override { return {num_arrived_}; }
  void resume(const std::vector<Pending>&, const std::vector<int64_t>& numbers) override {
    num_arrived_ = numbers.at(0);
  }

 private:
  int64_t num_arrived_ = 0;
};

// Tokens by length, in classes of at most 1/64 of the length (exact below 128). Small enough to be saved.
class LengthHistogram {
 public:
  void add(int64_t length) {
    tokens_[class_of(length)] += length;
    ++count_;
  }
  int64_t count() const { return count_; }

  // The longest lengths of all but the last of `num_buckets` classes that hold equal tokens; fewer where many
  // documents have one length.
  std::vector<int64_t> edges(int64_t num_buckets) const {
    double total = 0;
    for (const auto& [index, tokens] : tokens_) total += static_cast<double>(tokens);
    std::vector<int64_t> edges;
    double sum = 0;
    for (const auto& [index, tokens] : tokens_) {
      sum += static_cast<double>(tokens);
      const double next = static_cast<double>(edges.size() + 1) * total / static_cast<double>(num_buckets);
      if (sum >= next && static_cast<int64_t>(edges.size()) + 1 < num_buckets)
        edges.push_back(longest_of(index));
    }
    return edges;
  }

  std::vector<int64_t> numbers() const {
    std::vector<int64_t> numbers{count_};
    for (const auto& [index, tokens] : tokens_) numbers.insert(numbers.end(), {index, tokens});
    return numbers;
  }
  void restore(const std::vector<int64_t>& numbers) {
    count_ = numbers.at(0);
    for (size_t i = 1; i + 1 < numbers.size(); i += 2) tokens_[numbers[i]] = numbers[i + 1];
  }

 private:
  static int64_t shift_of(int64_t length) {
    return std::max<int64_t>(std::bit_width(static_cast<uint64_t>(length)) - 7, 0);
  }
  static int64_t class_of(int64_t length) {
    const int64_t shift = shift_of(length);
    return shift * 64 + (length >> shift);
  }
  static int64_t longest_of(int64_t index) {
    if (index < 128) return index;
    const int64_t shift = index / 64 - 1;
    return ((index - shift * 64 + 1) << shift) - 1;
  }

  int64_t count_ = 0;
  std::map<int64_t, int64_t> tokens_;
};

class BucketPlanner : public Planner {
 public:
  BucketPlanner(const config::Batching& batching, std::unique_ptr<DocumentStream> from,
                const PlanShape& shape, const CostModel& cost)
      : Planner(std::move(from), shape, cost), batching_(batching), edges_(batching.edges) {
    queues_.resize(edges_.size() + 1);
  }

 protected:
  void plan(std::vector<MicroBatchPlan>& micro_batches) override {
    for (MicroBatchPlan& each : micro_batches) {
      fill_window();
      if (num_waiting_ == 0) return;
      take_rows(next_bucket(), each);
    }
  }

  std::vector<Pending> pending() const override {
    std::vector<Pending> all;
    for (const auto& queue : queues_) all.insert(all.end(), queue.begin(), queue.end());
    std::sort(all.begin(), all.end(),
              [](const Pending& a, const Pending& b) { return a.arrival < b.arrival; });
    return all;
  }

  std::vector<int64_t> numbers() const override {
    std::vector<int64_t> numbers{num_arrived_, num_planned_, counted_at_edges_,
                                 static_cast<int64_t>(edges_.size())};
    numbers.insert(numbers.end(), edges_.begin(), edges_.end());
    if (estimates()) {
      const auto seen = histogram_.numbers();
      numbers.insert(numbers.end(), seen.begin(), seen.end());
    }
    return numbers;
  }

  void resume(const std::vector<Pending>& pending, const std::vector<int64_t>& numbers) override {
    num_arrived_ = numbers.at(0);
    num_planned_ = numbers.at(1);
    counted_at_edges_ = numbers.at(2);
    const auto edges = numbers.begin() + 4;
    edges_.assign(edges, edges + numbers.at(3));
    if (estimates()) histogram_.restore({edges + numbers.at(3), numbers.end()});
    queues_.assign(edges_.size() + 1, {});
    for (const Pending& each : pending) queues_[bucket_of(each.piece.length)].push_back(each);
    num_waiting_ = static_cast<int64_t>(pending.size());
  }

 private:
  static constexpr int64_t kSlice = 4;  // of so many micro-batches one is the long bucket's

  bool estimates() const { return batching_.kind == config::BatchingKind::buckets; }
  bool slices_time() const { return batching_.kind == config::BatchingKind::three_buckets; }

  size_t bucket_of(int64_t length) const {
    return std::lower_bound(edges_.begin(), edges_.end(), length) - edges_.begin();
  }
  int64_t longest_of(size_t bucket) const {
    return bucket < edges_.size() ? std::min(edges_[bucket], shape().context) : shape().context;
  }

  void fill_window() {
    while (num_waiting_ < shape().window) {
      const auto piece = stream().next();
      if (!piece) {
        stream_ended_ = true;
        break;
      }
      if (estimates()) histogram_.add(piece->length);
      queues_[bucket_of(piece->length)].push_back({*piece, num_arrived_++, step()});
      ++num_waiting_;
    }
    // Edges follow what is seen, more and more slowly.
    if (estimates() && 8 * histogram_.count() > 9 * counted_at_edges_) {
      counted_at_edges_ = histogram_.count();
      edges_ = histogram_.edges(batching_.num_buckets);
      const std::vector<Pending> waiting = pending();
      queues_.assign(edges_.size() + 1, {});
      for (const Pending& each : waiting) queues_[bucket_of(each.piece.length)].push_back(each);
    }
  }

  // Whether its rows fill a micro-batch, so that one more would not fit.
  bool is_ready(size_t bucket) const {
    const auto& queue = queues_[bucket];
    const auto count = static_cast<int64_t>(queue.size());
    const int64_t shortest = bucket == 0 ? 1 : edges_[bucket - 1] + 1;
    if ((count + 1) * longest_of(bucket) <= shape().capacity()) return false;
    if (count * shortest >= shape().capacity()) return true;
    int64_t longest = 0, rows = 0;
    for (const Pending& each : queue) {
      longest = std::max(longest, each.piece.length);
      if (longest * ++rows >= shape().capacity()) return true;
    }
    return longest * (rows + 1) > shape().capacity();
  }

  size_t oldest_bucket(bool ready_only) const {
    size_t oldest = queues_.size();
    for (size_t b = 0; b < queues_.size(); ++b) {
      if (queues_[b].empty() || (ready_only && !is_ready(b))) continue;
      if (oldest == queues_.size() || queues_[b].front().arrival < queues_[oldest].front().arrival)
        oldest = b;
    }
    return oldest;
  }

  size_t next_bucket() const {
    const size_t oldest = oldest_bucket(false);
    const size_t none = queues_.size();
    // Rare lengths do not wait for ever.
    if (num_arrived_ - queues_[oldest].front().arrival > 8 * shape().window) return oldest;
    if (slices_time()) {
      const size_t long_bucket = queues_.size() - 1;
      if (num_planned_ % kSlice == kSlice - 1 && !queues_[long_bucket].empty()) return long_bucket;
      for (size_t b = 0; b < queues_.size(); ++b) {
        if (is_ready(b)) return b;
      }
    } else if (const size_t ready = oldest_bucket(true); ready != none) {
      return ready;
    }
    // The window is too small to fill one, or the stream has ended.
    size_t most = oldest;
    for (size_t b = 0; b < queues_.size(); ++b) {
      const auto room_of = [&](size_t bucket) {
        return static_cast<int64_t>(queues_[bucket].size()) * longest_of(bucket);
      };
      if (room_of(b) > room_of(most)) most = b;
    }
    return stream_ended_ ? oldest : most;
  }

  // Rows in order of age until one more would not fit.
  void take_rows(size_t bucket, MicroBatchPlan& micro_batch) {
    auto& queue = queues_[bucket];
    const bool one_slice_each = slices_time() && bucket + 1 == queues_.size();
    std::deque<Pending> passed_over;
    while (!queue.empty()) {
      const Pending& pending = queue.front();
      const Piece& piece = pending.piece;
      const int64_t longest = std::max(micro_batch.row_length, piece.length);
      if (longest * (static_cast<int64_t>(micro_batch.pieces.size()) + 1) > shape().capacity()) break;
      const auto is_same = [&](const Piece& other) {
        return other.source == piece.source && other.document == piece.document;
      };
      if (one_slice_each && std::any_of(micro_batch.pieces.begin(), micro_batch.pieces.end(), is_same)) {
        passed_over.push_back(pending);
      } else {
        micro_batch.row_length = longest;
        micro_batch.tokens += piece.length;
        micro_batch.pieces.push_back(piece);
        micro_batch.arrivals.push_back(pending.arrival);
        --num_waiting_;
      }
      queue.pop_front();
    }
    queue.insert(queue.begin(), passed_over.begin(), passed_over.end());
    const auto rows = static_cast<int64_t>(micro_batch.pieces.size());
    micro_batch.padding = rows * micro_batch.row_length - micro_batch.tokens;
    micro_batch.cost = static_cast<double>(rows) * cost().of(micro_batch.row_length);
    ++num_planned_;
  }

  config::Batching batching_;
  std::vector<int64_t> edges_;               // longest length of each bucket but the last
  std::vector<std::deque<Pending>> queues_;  // of each bucket, oldest first
  int64_t num_waiting_ = 0, num_arrived_ = 0;
  int64_t num_planned_ = 0;  // micro-batches
  bool stream_ended_ = false;
  LengthHistogram histogram_;
  int64_t counted_at_edges_ = 0;
};

}  // namespace

std::unique_ptr<Planner> make_padded_planner(const config::Batching& batching,
                                             std::unique_ptr<DocumentStream> stream, const PlanShape& shape,
                                             const CostModel& cost) {
  if (batching.kind == config::BatchingKind::pad) {
    return std::make_unique<PadPlanner>(std::move(stream), shape, cost);
  }
  return std::make_unique<BucketPlanner>(batching, std::move(stream), shape, cost);
}

}  // namespace moebius::data
