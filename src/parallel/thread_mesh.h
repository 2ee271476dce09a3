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
          return std::make_unique<Borrowed>(group[layout_.index(axis, comm.rank())]);
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
  // A communicator of a group that outlives it.
  class Borrowed final : public Communicator {
   public:
    explicit Borrowed(Communicator& real) : real_(real) {}
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

  Layout layout_;
  std::map<std::pair<Axis, int>, std::unique_ptr<ThreadGroup>> groups_;
};

}  // namespace moebius::parallel
