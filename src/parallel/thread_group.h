// Communicators among threads of one process, for tests: no sockets, sums in the order of ranks, and an error
// in one thread releases the others. A collective returns when all ranks have called it; a send and a receive
// return at once, and the latter's result is there after wait().
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/communicator.h"

namespace moebius::parallel {

class ThreadGroup {
 public:
  explicit ThreadGroup(int size, const std::string& axis = "test");
  ~ThreadGroup();

  int size() const { return static_cast<int>(ranks_.size()); }
  Communicator& operator[](int rank) { return *ranks_[static_cast<size_t>(rank)]; }

  // Runs `body` once per rank, each in a thread of its own, and waits for all. The first error is thrown
  // again; ranks that wait for the one that failed get CommunicationFailed.
  void run(const std::function<void(Communicator&)>& body);

  // Ranks that wait, now or later, get CommunicationFailed.
  void fail();

  // What the ranks share; in thread_group.cpp.
  struct Shared;

 private:
  std::shared_ptr<Shared> shared_;
  std::vector<std::unique_ptr<Communicator>> ranks_;
};

// A rank of a ThreadGroup that outlives it, for those who want to own a communicator.
class BorrowedCommunicator final : public Communicator {
 public:
  explicit BorrowedCommunicator(Communicator& real) : real_(real) {}
  const std::string& axis() const override { return real_.axis(); }
  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  Pending all_reduce(at::Tensor inout, ReduceOp op) override { return real_.all_reduce(inout, op); }
  Pending all_gather(at::Tensor out, at::Tensor in) override { return real_.all_gather(out, in); }
  Pending reduce_scatter(at::Tensor out, at::Tensor in) override { return real_.reduce_scatter(out, in); }
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    return real_.all_to_all(out, in, std::move(out_rows), std::move(in_rows));
  }
  Pending broadcast(at::Tensor inout, int root) override { return real_.broadcast(inout, root); }
  Pending send(at::Tensor in, int to) override { return real_.send(in, to); }
  Pending receive(at::Tensor out, int from) override { return real_.receive(out, from); }
  void barrier() override { real_.barrier(); }
  std::map<std::string, Traffic> traffic() const override { return real_.traffic(); }

 private:
  Communicator& real_;
};

}  // namespace moebius::parallel
