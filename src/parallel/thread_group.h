// Communicators among threads of one process, for tests: no sockets, sums in the order of ranks, and an error
// in one thread releases the others. A collective returns when all ranks have called it; a send and a receive
// return at once, and the latter's result is there after wait().
#pragma once

#include <functional>
#include <memory>
#include <string>
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

}  // namespace moebius::parallel
