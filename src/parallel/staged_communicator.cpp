#include "parallel/staged_communicator.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

namespace moebius::parallel {
namespace {

at::Tensor on_host(const at::Tensor& tensor) {
  const auto options = at::TensorOptions().dtype(tensor.scalar_type());
  return at::empty(tensor.sizes(), tensor.is_cpu() ? options : options.pinned_memory(true));
}

class StagedWork final : public Pending::Work {
 public:
  StagedWork(std::future<Pending> begun, std::vector<at::Tensor> alive, at::Tensor out, at::Tensor host_out)
      : begun_(std::move(begun)),
        alive_(std::move(alive)),
        out_(std::move(out)),
        host_out_(std::move(host_out)) {}

  void wait() override {
    if (begun_.valid()) pending_ = begun_.get();
    pending_.wait();
    if (!out_.defined()) return;
    const at::NoGradGuard no_grad;
    out_.detach().copy_(host_out_, /*non_blocking=*/true);
  }
  bool is_done() override {
    if (begun_.valid()) {
      if (begun_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return false;
      pending_ = begun_.get();
    }
    return pending_.is_done();
  }

 private:
  std::future<Pending> begun_;
  Pending pending_;
  std::vector<at::Tensor> alive_;
  at::Tensor out_, host_out_;
};

}  // namespace

// Begins exchanges in a thread of its own, each when the copy of what it sends is there.
class StagedCommunicator::Starter {
 public:
  Starter() : thread_([this] { run(); }) {}
  ~Starter() {
    {
      const std::lock_guard lock(mutex_);
      ends_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  void add(std::packaged_task<Pending()> task) {
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    changed_.notify_all();
  }

  // The stream for copies to the host.
  c10::Stream stream(at::Device device) {
    if (!stream_) stream_ = c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device);
    return *stream_;
  }

 private:
  void run() {
    std::unique_lock lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return ends_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      std::packaged_task<Pending()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      lock.lock();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  bool ends_ = false;
  std::deque<std::packaged_task<Pending()>> tasks_;
  std::optional<c10::Stream> stream_;
  std::thread thread_;
};

StagedCommunicator::StagedCommunicator(std::unique_ptr<Communicator> inner, bool copies_host)
    : inner_(std::move(inner)), copies_host_(copies_host), starter_(std::make_unique<Starter>()) {}

StagedCommunicator::~StagedCommunicator() = default;

Pending StagedCommunicator::stage(const at::Tensor& in, const at::Tensor& out, const at::Tensor& host_in,
                                  const at::Tensor& host_out, std::function<Pending()> begin) {
  std::shared_ptr<c10::Event> copied;
  if (in.defined() && in.is_cpu()) {
    host_in.copy_(in.detach());
  } else if (in.defined()) {
    const at::Device device = in.device();
    const c10::impl::VirtualGuardImpl guard(device.type());
    const c10::Stream aside = starter_->stream(device);
    c10::Event ready(device.type());
    ready.record(guard.getStream(device));
    ready.block(aside);
    const c10::StreamGuard here(aside);
    host_in.copy_(in.detach(), /*non_blocking=*/true);
    copied = std::make_shared<c10::Event>(device.type());
    copied->record(aside);
  }
  std::packaged_task<Pending()> task([copied, begin = std::move(begin)] {
    if (copied != nullptr) copied->synchronize();
    return begin();
  });
  std::future<Pending> begun = task.get_future();
  starter_->add(std::move(task));
  return Pending(std::make_shared<StagedWork>(std::move(begun),
                                              std::vector<at::Tensor>{in, host_in, host_out}, out, host_out));
}

// Also what needs no copy begins in the order of calls, which is the same on all ranks.
Pending StagedCommunicator::start(std::function<Pending()> begin) {
  return stage({}, {}, {}, {}, std::move(begin));
}

void StagedCommunicator::barrier() {
  start([this]() -> Pending {
    inner_->barrier();
    return {};
  }).wait();
}

Pending StagedCommunicator::all_reduce(at::Tensor inout, ReduceOp op) {
  if (passes(inout)) return start([this, inout, op] { return inner_->all_reduce(inout, op); });
  const at::NoGradGuard no_grad;
  const at::Tensor host = on_host(inout);
  return stage(inout, inout, host, host, [this, host, op] { return inner_->all_reduce(host, op); });
}

Pending StagedCommunicator::all_gather(at::Tensor out, at::Tensor in) {
  if (passes(in)) return start([this, out, in] { return inner_->all_gather(out, in); });
  const at::NoGradGuard no_grad;
  const at::Tensor host_in = on_host(in), host_out = on_host(out);
  return stage(in, out, host_in, host_out,
               [this, host_in, host_out] { return inner_->all_gather(host_out, host_in); });
}

Pending StagedCommunicator::reduce_scatter(at::Tensor out, at::Tensor in) {
  if (passes(in)) return start([this, out, in] { return inner_->reduce_scatter(out, in); });
  const at::NoGradGuard no_grad;
  const at::Tensor host_in = on_host(in), host_out = on_host(out);
  return stage(in, out, host_in, host_out,
               [this, host_in, host_out] { return inner_->reduce_scatter(host_out, host_in); });
}

Pending StagedCommunicator::all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                                       std::vector<int64_t> in_rows) {
  if (passes(in))
    return start(
        [this, out, in, out_rows, in_rows] { return inner_->all_to_all(out, in, out_rows, in_rows); });
  const at::NoGradGuard no_grad;
  const at::Tensor host_in = on_host(in), host_out = on_host(out);
  return stage(in, out, host_in, host_out,
               [this, host_in, host_out, out_rows = std::move(out_rows), in_rows = std::move(in_rows)] {
                 return inner_->all_to_all(host_out, host_in, out_rows, in_rows);
               });
}

Pending StagedCommunicator::broadcast(at::Tensor inout, int root) {
  if (passes(inout)) return start([this, inout, root] { return inner_->broadcast(inout, root); });
  const at::NoGradGuard no_grad;
  const at::Tensor host = on_host(inout);
  return stage(inout, inout, host, host, [this, host, root] { return inner_->broadcast(host, root); });
}

Pending StagedCommunicator::send(at::Tensor in, int to) {
  if (passes(in)) return start([this, in, to] { return inner_->send(in, to); });
  const at::NoGradGuard no_grad;
  const at::Tensor host = on_host(in);
  return stage(in, {}, host, {}, [this, host, to] { return inner_->send(host, to); });
}

Pending StagedCommunicator::receive(at::Tensor out, int from) {
  if (passes(out)) return start([this, out, from] { return inner_->receive(out, from); });
  const at::NoGradGuard no_grad;
  const at::Tensor host = on_host(out);
  return stage({}, out, {}, host, [this, host, from] { return inner_->receive(host, from); });
}

}  // namespace moebius::parallel
