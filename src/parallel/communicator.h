// Collectives among the processes of one axis of the mesh. One process is one device; all ranks of an axis
// call the same collectives in the same order.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace moebius::parallel {

enum class ReduceOp : uint8_t { sum, max };

// A rank is gone or a collective did not end in time. The text names the axis, this rank, the collective and
// its sequence number on the axis.
class CommunicationFailed : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A collective under way. Its tensors are kept alive until it has ended; results may be read, and inputs be
// changed, after wait().
class Pending {
 public:
  // What an implementation has under way.
  class Work {
   public:
    virtual ~Work() = default;
    virtual void wait() = 0;
    virtual bool is_done() = 0;
  };

  Pending() = default;  // one that has ended
  explicit Pending(std::shared_ptr<Work> work) : work_(std::move(work)) {}

  // On a CPU blocks until the results are there; on a GPU the current stream waits, the host does not.
  // Throws CommunicationFailed.
  void wait() {
    if (work_ != nullptr) std::exchange(work_, nullptr)->wait();
  }
  bool is_done() const { return work_ == nullptr || work_->is_done(); }

 private:
  std::shared_ptr<Work> work_;
};

// What one rank has handed to one kind of collective.
struct Traffic {
  int64_t calls = 0;
  int64_t sent_bytes = 0;  // that left this rank, as the algorithm used sends them

  bool operator==(const Traffic&) const = default;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual const std::string& axis() const = 0;  // "dp", "tp", … or "world"
  virtual int rank() const = 0;                 // on this axis
  virtual int size() const = 0;

  // All of them return at once; tensors are contiguous, and on the device of the process or, on all ranks, on
  // the host. Sizes agree among the ranks unless said otherwise. Ranks that are together on several axes
  // begin the exchanges of all of these in one order: on a GPU those of two axes could wait for each other
  // else.
  virtual Pending all_reduce(at::Tensor inout, ReduceOp op = ReduceOp::sum) = 0;
  // out (n · m) from in (m) of each of n ranks, in the order of ranks; both are seen as flat.
  virtual Pending all_gather(at::Tensor out, at::Tensor in) = 0;
  // out (m): the sum over the ranks of the rank-th part of in (n · m); both are seen as flat.
  virtual Pending reduce_scatter(at::Tensor out, at::Tensor in) = 0;
  // Rows of dim 0: in_rows[r] of them go to rank r, out_rows[r] come from it. Rows have one size everywhere.
  virtual Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                             std::vector<int64_t> in_rows) = 0;
  virtual Pending broadcast(at::Tensor inout, int root) = 0;
  virtual Pending send(at::Tensor in, int to) = 0;
  virtual Pending receive(at::Tensor out, int from) = 0;
  // Makes what messages from one rank to another need; both call it, and ranks that call it for several pairs
  // do so in one order. Else the first message does, which on a GPU waits for ever where a message to the
  // other is under way that it will receive only later. Blocks; does nothing where messages need nothing.
  virtual void connect(int /*from*/, int /*to*/) {}
  // Blocks until all ranks have come here.
  virtual void barrier() = 0;

  // By name of the collective ("all_reduce", …), since the start.
  virtual std::map<std::string, Traffic> traffic() const = 0;
};

}  // namespace moebius::parallel
