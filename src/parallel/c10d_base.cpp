#include "parallel/c10d_base.h"

#include <ATen/core/grad_mode.h>
#include <c10/util/Logging.h>

#include <cstdlib>

#include "base/check.h"
#include "base/concat.h"
#include "parallel/positions.h"

namespace moebius::parallel {
namespace {

class C10dWork final : public Pending::Work {
 public:
  C10dWork(c10::intrusive_ptr<c10d::Work> work, Place place, std::vector<at::Tensor> tensors,
           std::function<void()> finish)
      : work_(std::move(work)),
        place_(std::move(place)),
        tensors_(std::move(tensors)),
        finish_(std::move(finish)) {}

  void wait() override {
    try {
      work_->wait();
    } catch (const std::exception& error) {
      fail(place_, error);
    }
    if (!finish_) return;
    const at::NoGradGuard no_grad;
    finish_();
  }
  bool is_done() override { return work_->isCompleted(); }

 private:
  c10::intrusive_ptr<c10d::Work> work_;
  Place place_;
  std::vector<at::Tensor> tensors_;  // alive until it has ended
  std::function<void()> finish_;
};

}  // namespace

std::string describe(const Place& place) {
  return concat("axis ", place.axis, ", rank ", place.rank, " of ", place.size, " (world rank ",
                place.world_rank, "), ", place.collective, " number ", place.number);
}

std::string late_text(const Place& place, const std::string& otherwise) {
  std::string behind = place.positions == nullptr ? std::string() : place.positions->who_is_behind();
  if (behind.empty()) behind = otherwise;
  return concat(describe(place), " did not end within ", place.timeout_s,
                " s (parallel.timeout_s): ", behind);
}

void fail(const Place& place, const std::exception& error) {
  std::string text = error.what();
  text = text.substr(0, text.find('\n'));
  const bool is_late = text.find("imed out") != std::string::npos || text.find("imeout") != std::string::npos;
  if (is_late)
    throw CommunicationFailed(
        late_text(place, concat("a rank hangs, or is at another collective (", text, ")")));
  throw CommunicationFailed(concat(describe(place), ": a rank is gone, or the network (", text, ")"));
}

at::Tensor as_bytes(const at::Tensor& tensor) {
  return tensor.view({-1}).view(at::kByte);
}

int64_t bytes_of(const at::Tensor& tensor) {
  return static_cast<int64_t>(tensor.nbytes());
}

C10dCommunicator::C10dCommunicator(c10::intrusive_ptr<c10d::Backend> group, GroupOptions options)
    : group_(std::move(group)), options_(std::move(options)) {}

std::map<std::string, Traffic> C10dCommunicator::traffic() const {
  const std::lock_guard lock(mutex_);
  return traffic_;
}

void C10dCommunicator::check_gather(const at::Tensor& out, const at::Tensor& in) const {
  check(in, "all_gather");
  check(out, "all_gather");
  MOEBIUS_CHECK(out.numel() == in.numel() * size() && out.scalar_type() == in.scalar_type(),
                "all_gather: ", out.numel(), " elements from ", size(), " times ", in.numel());
}

void C10dCommunicator::check_scatter(const at::Tensor& out, const at::Tensor& in) const {
  check(in, "reduce_scatter");
  check(out, "reduce_scatter");
  MOEBIUS_CHECK(in.numel() == out.numel() * size() && out.scalar_type() == in.scalar_type(),
                "reduce_scatter: ", out.numel(), " elements from ", in.numel(), " among ", size());
}

int64_t C10dCommunicator::check_rows(const at::Tensor& out, const std::vector<int64_t>& out_rows,
                                     const at::Tensor& in, const std::vector<int64_t>& in_rows) const {
  check(in, "all_to_all");
  check(out, "all_to_all");
  const auto of_row = [](const at::Tensor& tensor) {
    int64_t count = static_cast<int64_t>(tensor.element_size());
    for (int64_t dim = 1; dim < tensor.dim(); ++dim) count *= tensor.size(dim);
    return count;
  };
  const auto sum = [&](const std::vector<int64_t>& rows) {
    MOEBIUS_CHECK_EQ(static_cast<int>(rows.size()), size(), "counts of all_to_all");
    int64_t total = 0;
    for (const int64_t each : rows) total += each;
    return total;
  };
  MOEBIUS_CHECK_EQ(sum(out_rows), out.size(0), "rows that come in all_to_all");
  MOEBIUS_CHECK_EQ(sum(in_rows), in.size(0), "rows that go in all_to_all");
  MOEBIUS_CHECK_EQ(of_row(out), of_row(in), "bytes of a row of all_to_all");
  return of_row(in);
}

Place C10dCommunicator::count(const char* collective, int64_t sent_bytes) {
  const std::lock_guard lock(mutex_);
  Traffic& traffic = traffic_[collective];
  ++traffic.calls;
  traffic.sent_bytes += sent_bytes;
  ++number_;
  if (options_.positions != nullptr) options_.positions->begin(options_.axis, collective, number_);
  return {options_.axis,       collective, options_.rank,      options_.size,
          options_.world_rank, number_,    options_.timeout_s, options_.positions};
}

Pending C10dCommunicator::start(const Place& place, std::vector<at::Tensor> tensors,
                                std::function<void()> finish, const Begin& begin) {
  try {
    return Pending(std::make_shared<C10dWork>(begin(), place, std::move(tensors), std::move(finish)));
  } catch (const std::exception& error) {
    fail(place, error);
  }
}

void set_up_c10d() {
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", /*overwrite=*/0);
  ::setenv("TORCH_FR_BUFFER_SIZE", "0", /*overwrite=*/0);
  c10::initLogging();
}

}  // namespace moebius::parallel
