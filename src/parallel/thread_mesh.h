// A mesh whose ranks are threads of one process, for tests.
#pragma once

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "parallel/mesh.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {

class ThreadMesh {
 public:
  explicit ThreadMesh(const Layout& layout) : layout_(layout) {
    for (const Axis axis : kAxes)
      for (int rank = 0; rank < layout.world(); ++rank) {
        auto& group = groups_[{axis, layout.group(axis, rank).front()}];
        if (!group) group = std::make_unique<ThreadGroup>(layout.size(axis), name_of(axis));
      }
  }

  // Runs `body` once per rank, each in a thread of its own, and waits for all. The first error is thrown
  // again; ranks that wait for the one that failed get CommunicationFailed.
  void run(const std::function<void(const Mesh&)>& body) {
    const auto world = groups_.find({Axis::world, 0});
    std::exception_ptr first;
    std::mutex mutex;
    const auto run_rank = [&](Communicator& comm) {
      try {
        const Mesh mesh(layout_, comm.rank(), [&](Axis axis, const std::vector<int>& ranks) {
          ThreadGroup& group = *groups_.at({axis, ranks.front()});
          return std::make_unique<BorrowedCommunicator>(group[layout_.index(axis, comm.rank())]);
        });
        body(mesh);
      } catch (...) {
        {
          const std::lock_guard lock(mutex);
          if (first == nullptr) first = std::current_exception();
        }
        for (const auto& [key, group] : groups_) group->fail();
        throw;
      }
    };
    try {
      world->second->run(run_rank);
    } catch (...) {
      std::rethrow_exception(first);
    }
  }

 private:
  Layout layout_;
  std::map<std::pair<Axis, int>, std::unique_ptr<ThreadGroup>> groups_;
};

}  // namespace moebius::parallel
