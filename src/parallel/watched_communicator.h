// A communicator that counts how long its process stands still for it, and that can do without overlap.
#pragma once

#include <c10/core/Device.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/stall_clock.h"

namespace moebius::parallel {

// On a CPU the host blocks in wait(), so that what is counted there is communication which nothing hid. On a
// GPU wait() only queues, and what is counted is how long the current stream stands there: between two events
// of it (stall_clock.h). Time is counted from any thread.
class WatchedCommunicator final : public Communicator {
 public:
  // overlaps = false: every collective has ended when it returns, so that nothing is computed meanwhile; the
  // results are the same. For measuring what overlap gains.
  // `device`: where the process computes.
  WatchedCommunicator(std::unique_ptr<Communicator> inner, bool overlaps, at::Device device = at::kCPU);
  ~WatchedCommunicator() override;

  const std::string& axis() const override { return inner_->axis(); }
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  Pending all_reduce(at::Tensor inout, ReduceOp op) override;
  Pending all_gather(at::Tensor out, at::Tensor in) override;
  Pending reduce_scatter(at::Tensor out, at::Tensor in) override;
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override;
  Pending broadcast(at::Tensor inout, int root) override;
  Pending send(at::Tensor in, int to) override;
  Pending receive(at::Tensor out, int from) override;
  void connect(int from, int to) override { inner_->connect(from, to); }
  void barrier() override;
  std::map<std::string, Traffic> traffic() const override { return inner_->traffic(); }

  // Since the start; also while a receive's or a barrier's partner was late. On a GPU as far as it has come.
  double waited_s() const { return clock_->seconds(); }

 private:
  Pending watch(Pending pending, const char* what);

  std::unique_ptr<Communicator> inner_;
  bool overlaps_;
  std::shared_ptr<StallClock> clock_;
};

}  // namespace moebius::parallel
