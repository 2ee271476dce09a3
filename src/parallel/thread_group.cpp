#include "parallel/thread_group.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/maximum.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/concat.h"

namespace moebius::parallel {

struct ThreadGroup::Shared {
  // What a rank brings to a collective.
  struct Part {
    std::string what;
    at::Tensor tensor;
    std::vector<int64_t> rows;
  };

  explicit Shared(int size) : parts(static_cast<size_t>(size)) {}

  // Blocks until all ranks are here.
  void meet(const std::string& who) {
    std::unique_lock lock(mutex);
    if (failed) throw CommunicationFailed(who + ": another rank has failed");
    const int64_t mine = meeting;
    if (++arrived == static_cast<int>(parts.size())) {
      arrived = 0;
      ++meeting;
      changed.notify_all();
      return;
    }
    changed.wait(lock, [&] { return meeting != mine || failed; });
    if (meeting == mine) throw CommunicationFailed(who + ": another rank has failed");
  }

  void fail() {
    const std::lock_guard lock(mutex);
    failed = true;
    changed.notify_all();
  }

  std::mutex mutex;
  std::condition_variable changed;
  int64_t meeting = 0;
  int arrived = 0;
  bool failed = false;
  std::vector<Part> parts;
  // Of each pair (from, to): what was sent and not taken yet, by its number.
  struct Box {
    std::map<int64_t, at::Tensor> sent;
    int64_t num_sent = 0, num_asked = 0;
  };
  std::map<std::pair<int, int>, Box> mail;
};

namespace {

// Takes what was sent as the number that it has among the receives of its pair.
class Receiving final : public Pending::Work {
 public:
  // Under the lock of `shared`.
  Receiving(std::shared_ptr<ThreadGroup::Shared> shared, std::pair<int, int> pair, at::Tensor out,
            std::string who)
      : shared_(std::move(shared)),
        box_(shared_->mail[pair]),
        number_(box_.num_asked++),
        out_(std::move(out)),
        who_(std::move(who)) {}

  void wait() override {
    at::Tensor sent;
    {
      std::unique_lock lock(shared_->mutex);
      shared_->changed.wait(lock, [&] { return box_.num_sent > number_ || shared_->failed; });
      if (box_.num_sent <= number_) throw CommunicationFailed(who_ + ": another rank has failed");
      const auto found = box_.sent.find(number_);
      sent = found->second;
      box_.sent.erase(found);
    }
    const at::NoGradGuard no_grad;
    out_.copy_(sent.view_as(out_));
  }
  bool is_done() override {
    const std::lock_guard lock(shared_->mutex);
    return box_.num_sent > number_;
  }

 private:
  std::shared_ptr<ThreadGroup::Shared> shared_;
  ThreadGroup::Shared::Box& box_;
  int64_t number_;
  at::Tensor out_;
  std::string who_;
};

class ThreadCommunicator final : public Communicator {
 public:
  ThreadCommunicator(std::string axis, int rank, int size, std::shared_ptr<ThreadGroup::Shared> shared)
      : axis_(std::move(axis)), rank_(rank), size_(size), shared_(std::move(shared)) {}

  const std::string& axis() const override { return axis_; }
  int rank() const override { return rank_; }
  int size() const override { return size_; }

  Pending all_reduce(at::Tensor inout, ReduceOp op) override {
    count("all_reduce", 2 * static_cast<int64_t>(inout.nbytes()) * (size_ - 1) / size_);
    at::Tensor result;
    exchange(concat("all_reduce of ", inout.numel()), inout, {}, [&](const auto& parts) {
      result = parts[0].tensor.clone();
      for (int rank = 1; rank < size_; ++rank) {
        const at::Tensor& other = parts[static_cast<size_t>(rank)].tensor;
        if (op == ReduceOp::sum) {
          result.add_(other);
        } else {
          result = at::maximum(result, other);
        }
      }
    });
    inout.copy_(result);
    return {};
  }

  Pending all_gather(at::Tensor out, at::Tensor in) override {
    MOEBIUS_CHECK(out.numel() == in.numel() * size_, "all_gather: ", out.numel(), " from ", in.numel());
    count("all_gather", static_cast<int64_t>(in.nbytes()) * (size_ - 1));
    at::Tensor flat = out.view({-1});
    exchange(concat("all_gather of ", in.numel()), in, {}, [&](const auto& parts) {
      for (int rank = 0; rank < size_; ++rank)
        flat.narrow(0, rank * in.numel(), in.numel())
            .copy_(parts[static_cast<size_t>(rank)].tensor.view({-1}));
    });
    return {};
  }

  Pending reduce_scatter(at::Tensor out, at::Tensor in) override {
    MOEBIUS_CHECK(in.numel() == out.numel() * size_, "reduce_scatter: ", out.numel(), " from ", in.numel());
    count("reduce_scatter", static_cast<int64_t>(out.nbytes()) * (size_ - 1));
    at::Tensor result;
    exchange(concat("reduce_scatter of ", in.numel()), in, {}, [&](const auto& parts) {
      for (const auto& part : parts) {
        const at::Tensor mine = part.tensor.view({-1}).narrow(0, rank_ * out.numel(), out.numel());
        result = result.defined() ? result.add_(mine) : mine.clone();
      }
    });
    out.view({-1}).copy_(result);
    return {};
  }

  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    int64_t kept = in_rows[static_cast<size_t>(rank_)], all = 0;
    for (const int64_t rows : in_rows) all += rows;
    MOEBIUS_CHECK(all == in.size(0), "all_to_all: ", in.size(0), " rows, told of ", all);
    count("all_to_all", all == 0 ? 0 : static_cast<int64_t>(in.nbytes()) / all * (all - kept));
    exchange("all_to_all", in, in_rows, [&](const auto& parts) {
      int64_t at = 0;
      for (int rank = 0; rank < size_; ++rank) {
        const auto& part = parts[static_cast<size_t>(rank)];
        int64_t begin = 0;
        for (int to = 0; to < rank_; ++to) begin += part.rows[static_cast<size_t>(to)];
        const int64_t rows = part.rows[static_cast<size_t>(rank_)];
        MOEBIUS_CHECK(rows == out_rows[static_cast<size_t>(rank)], "all_to_all: rank ", rank, " sends ", rows,
                      " rows to rank ", rank_, ", which expects ", out_rows[static_cast<size_t>(rank)]);
        out.narrow(0, at, rows).copy_(part.tensor.narrow(0, begin, rows));
        at += rows;
      }
      MOEBIUS_CHECK(at == out.size(0), "all_to_all: room for ", out.size(0), " rows, got ", at);
    });
    return {};
  }

  Pending broadcast(at::Tensor inout, int root) override {
    count("broadcast", rank_ == root ? static_cast<int64_t>(inout.nbytes()) * (size_ - 1) : 0);
    exchange(concat("broadcast of ", inout.numel(), " from ", root), inout, {}, [&](const auto& parts) {
      if (rank_ != root) inout.copy_(parts[static_cast<size_t>(root)].tensor);
    });
    return {};
  }

  Pending send(at::Tensor in, int to) override {
    count("send", static_cast<int64_t>(in.nbytes()));
    const std::lock_guard lock(shared_->mutex);
    ThreadGroup::Shared::Box& box = shared_->mail[{rank_, to}];
    box.sent[box.num_sent++] = in.detach().clone();
    shared_->changed.notify_all();
    return {};
  }

  Pending receive(at::Tensor out, int from) override {
    count("receive", 0);
    const std::lock_guard lock(shared_->mutex);
    return Pending(std::make_shared<Receiving>(shared_, std::pair(from, rank_), out, who("receive")));
  }

  void barrier() override { shared_->meet(who("barrier")); }

  std::map<std::string, Traffic> traffic() const override { return traffic_; }

 private:
  std::string who(const std::string& what) const {
    return concat("axis ", axis_, ", rank ", rank_, ", ", what, ", number ", sequence_);
  }

  void count(const std::string& what, int64_t bytes) {
    ++sequence_;
    Traffic& traffic = traffic_[what];
    ++traffic.calls;
    traffic.sent_bytes += bytes;
  }

  // `read` sees what all ranks brought; afterwards the tensors may be changed.
  template <class Read>
  void exchange(const std::string& what, const at::Tensor& tensor, const std::vector<int64_t>& rows,
                const Read& read) {
    const at::NoGradGuard no_grad;
    MOEBIUS_CHECK(tensor.is_contiguous(), what, " of a tensor that is not contiguous");
    shared_->parts[static_cast<size_t>(rank_)] = {what, tensor.detach(), rows};
    shared_->meet(who(what));
    for (int rank = 0; rank < size_; ++rank) {
      const std::string& other = shared_->parts[static_cast<size_t>(rank)].what;
      MOEBIUS_CHECK(other == what, who(what), ": rank ", rank, " is at ", other);
    }
    read(shared_->parts);
    shared_->meet(who(what));
  }

  std::string axis_;
  int rank_, size_;
  std::shared_ptr<ThreadGroup::Shared> shared_;
  int64_t sequence_ = 0;
  std::map<std::string, Traffic> traffic_;
};

}  // namespace

ThreadGroup::ThreadGroup(int size, const std::string& axis) : shared_(std::make_shared<Shared>(size)) {
  for (int rank = 0; rank < size; ++rank)
    ranks_.push_back(std::make_unique<ThreadCommunicator>(axis, rank, size, shared_));
}

ThreadGroup::~ThreadGroup() = default;

void ThreadGroup::fail() {
  shared_->fail();
}

void ThreadGroup::run(const std::function<void(Communicator&)>& body) {
  std::exception_ptr first;
  std::mutex mutex;
  std::vector<std::thread> threads;
  threads.reserve(ranks_.size());
  for (const auto& each : ranks_) {
    threads.emplace_back([&, comm = each.get()] {
      try {
        body(*comm);
      } catch (...) {
        {
          const std::lock_guard lock(mutex);
          if (first == nullptr) first = std::current_exception();
        }
        shared_->fail();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first != nullptr) std::rethrow_exception(first);
}

}  // namespace moebius::parallel
