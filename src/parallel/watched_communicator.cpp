#include "parallel/watched_communicator.h"

#include <utility>

#include "telemetry/trace.h"

namespace moebius::parallel {
namespace {

class WatchedWork final : public Pending::Work {
 public:
  WatchedWork(Pending inner, std::shared_ptr<StallClock> clock, const char* what, const char* axis)
      : inner_(std::move(inner)), clock_(std::move(clock)), axis_(axis), exchange_(what, axis) {}
  void wait() override {
    {
      const StallClock::Span stalled(*clock_);
      const telemetry::Span span("wait", axis_);
      inner_.wait();
    }
    exchange_.end();
  }
  bool is_done() override {
    const bool done = inner_.is_done();
    if (done) exchange_.end();
    return done;
  }

 private:
  Pending inner_;
  std::shared_ptr<StallClock> clock_;
  const char* axis_;
  telemetry::Exchange exchange_;  // as far as the host knows of its end
};

}  // namespace

WatchedCommunicator::WatchedCommunicator(std::unique_ptr<Communicator> inner, bool overlaps,
                                         at::Device device)
    : inner_(std::move(inner)), overlaps_(overlaps), clock_(std::make_shared<StallClock>(device)) {}

WatchedCommunicator::~WatchedCommunicator() = default;

Pending WatchedCommunicator::watch(Pending pending, const char* what) {
  Pending watched(std::make_shared<WatchedWork>(std::move(pending), clock_, what, axis().c_str()));
  if (!overlaps_) watched.wait();
  return watched;
}

Pending WatchedCommunicator::all_reduce(at::Tensor inout, ReduceOp op) {
  return watch(inner_->all_reduce(std::move(inout), op), "all_reduce");
}

Pending WatchedCommunicator::all_gather(at::Tensor out, at::Tensor in) {
  return watch(inner_->all_gather(std::move(out), std::move(in)), "all_gather");
}

Pending WatchedCommunicator::reduce_scatter(at::Tensor out, at::Tensor in) {
  return watch(inner_->reduce_scatter(std::move(out), std::move(in)), "reduce_scatter");
}

Pending WatchedCommunicator::all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                                        std::vector<int64_t> in_rows) {
  return watch(inner_->all_to_all(std::move(out), std::move(in), std::move(out_rows), std::move(in_rows)),
               "all_to_all");
}

Pending WatchedCommunicator::broadcast(at::Tensor inout, int root) {
  return watch(inner_->broadcast(std::move(inout), root), "broadcast");
}

// Ranks that send to each other before they receive must not wait for the other to receive.
Pending WatchedCommunicator::send(at::Tensor in, int to) {
  Pending pending = inner_->send(std::move(in), to);
  return Pending(std::make_shared<WatchedWork>(std::move(pending), clock_, "send", axis().c_str()));
}

Pending WatchedCommunicator::receive(at::Tensor out, int from) {
  return watch(inner_->receive(std::move(out), from), "receive");
}

void WatchedCommunicator::barrier() {
  const StallClock::Span stalled(*clock_);
  inner_->barrier();
}

}  // namespace moebius::parallel
