// An axis of one rank: collectives copy or do nothing, and nothing leaves the process.
#pragma once

#include <string>

#include "parallel/communicator.h"

namespace moebius::parallel {

class SoloCommunicator final : public Communicator {
 public:
  explicit SoloCommunicator(std::string axis) : axis_(std::move(axis)) {}

  const std::string& axis() const override { return axis_; }
  int rank() const override { return 0; }
  int size() const override { return 1; }

  Pending all_reduce(at::Tensor inout, ReduceOp op) override;
  Pending all_gather(at::Tensor out, at::Tensor in) override;
  Pending reduce_scatter(at::Tensor out, at::Tensor in) override;
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override;
  Pending broadcast(at::Tensor inout, int root) override;
  // There is nobody to send to (CHECK).
  Pending send(at::Tensor in, int to) override;
  Pending receive(at::Tensor out, int from) override;
  void barrier() override {}
  std::map<std::string, Traffic> traffic() const override { return traffic_; }

 private:
  std::string axis_;
  std::map<std::string, Traffic> traffic_;
};

}  // namespace moebius::parallel
