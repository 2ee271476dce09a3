// Communicator for tensors on a GPU over one for tensors on the host: for processes that share a GPU, which
// NCCL does not serve, and machines without it. Tensors go through pinned host memory. What goes out is
// copied on a stream of its own while the current stream goes on; wait() blocks the host until the exchange
// has ended, and the current stream copies what came. Tensors on the host are passed on, in the order of
// calls.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace moebius::parallel {

class StagedCommunicator final : public Communicator {
 public:
  // copies_host: tensors on the host are staged too, in ordinary memory (for tests).
  explicit StagedCommunicator(std::unique_ptr<Communicator> inner, bool copies_host = false);
  ~StagedCommunicator() override;

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
  void barrier() override;
  std::map<std::string, Traffic> traffic() const override { return inner_->traffic(); }

 private:
  class Starter;
  bool passes(const at::Tensor& tensor) const { return tensor.is_cpu() && !copies_host_; }
  // Copies `in` to the host, calls begin() there in the order of calls, and copies `out` back in wait().
  // Either may be undefined.
  Pending stage(const at::Tensor& in, const at::Tensor& out, const at::Tensor& host_in,
                const at::Tensor& host_out, std::function<Pending()> begin);

  Pending start(std::function<Pending()> begin);

  std::unique_ptr<Communicator> inner_;
  bool copies_host_;
  std::unique_ptr<Starter> starter_;
};

}  // namespace moebius::parallel
