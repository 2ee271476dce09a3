// What communicators over process groups of c10d have in common, whatever moves their data: checks, counts,
// and messages that say where a collective is.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

#include "parallel/c10d_communicator.h"

namespace moebius::parallel {

// Where a collective is, for messages.
struct Place {
  std::string axis, collective;
  int rank = 0, size = 1, world_rank = 0;
  int64_t number = 0;
  double timeout_s = 0;
  std::shared_ptr<Positions> positions;
};

// "axis dp, rank 1 of 4 (world rank 2), all_reduce number 12"
std::string describe(const Place& place);
// That it did not end in time: with the ranks that are behind, or with `otherwise` where nobody is.
std::string late_text(const Place& place, const std::string& otherwise);
// CommunicationFailed, which tells an exchange that is late from one whose partner is gone.
[[noreturn]] void fail(const Place& place, const std::exception& error);

// What is only moved goes as bytes: transports know few types. Flat; the tensor is contiguous.
at::Tensor as_bytes(const at::Tensor& tensor);
int64_t bytes_of(const at::Tensor& tensor);

class C10dCommunicator : public Communicator {
 public:
  C10dCommunicator(c10::intrusive_ptr<c10d::Backend> group, GroupOptions options);

  const std::string& axis() const override { return options_.axis; }
  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }
  std::map<std::string, Traffic> traffic() const override;

 protected:
  using Begin = std::function<c10::intrusive_ptr<c10d::Work>()>;

  // Contiguous, and of the kind of device that the group serves.
  virtual void check(const at::Tensor& tensor, const char* collective) const = 0;
  void check_gather(const at::Tensor& out, const at::Tensor& in) const;
  void check_scatter(const at::Tensor& out, const at::Tensor& in) const;
  // Bytes of a row.
  int64_t check_rows(const at::Tensor& out, const std::vector<int64_t>& out_rows, const at::Tensor& in,
                     const std::vector<int64_t>& in_rows) const;

  // A collective begins: tells positions, and counts what this rank will send.
  Place count(const char* collective, int64_t sent_bytes);
  // `tensors` live until it has ended; `finish` is called in wait(). Errors of begin() are told as of
  // `place`.
  static Pending start(const Place& place, std::vector<at::Tensor> tensors, std::function<void()> finish,
                       const Begin& begin);

  c10::intrusive_ptr<c10d::Backend> group_;
  GroupOptions options_;

 private:
  mutable std::mutex mutex_;
  int64_t number_ = 0;
  std::map<std::string, Traffic> traffic_;
};

}  // namespace moebius::parallel
