#include "parallel/nccl_communicator.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <exception>
#include <map>
#include <mutex>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <utility>

#include "base/check.h"
#include "base/concat.h"
#include "ops/device.h"
#include "parallel/c10d_base.h"
#include "parallel/c10d_store.h"
#include "parallel/collective_watch.h"

namespace moebius::parallel {
namespace {

using Group = c10::intrusive_ptr<c10d::Backend>;

// Process groups of NCCL, made when they are used.
class GroupMaker {
 public:
  GroupMaker(c10::intrusive_ptr<c10d::Store> store, GroupOptions options, at::Device device)
      : store_(std::move(store)), options_(std::move(options)), device_(device) {}

  Group make(const std::string& purpose) const {
    c10::intrusive_ptr<c10d::Store> names =
        c10::make_intrusive<c10d::PrefixStore>(concat("nccl/", options_.name, "/", purpose), store_);
    void* const made =
        ops::cuda_plugin()->nccl_group({&names, options_.rank, options_.size, device_.index()});
    return Group::reclaim(static_cast<c10d::Backend*>(made));
  }

 private:
  c10::intrusive_ptr<c10d::Store> store_;
  GroupOptions options_;
  at::Device device_;
};

class NcclCommunicator final : public C10dCommunicator {
 public:
  NcclCommunicator(GroupMaker maker, const GroupOptions& options, at::Device device, CollectiveWatch* watch)
      : C10dCommunicator({}, options), maker_(std::move(maker)), device_(device), watch_(watch) {}

  ~NcclCommunicator() override {
    // An end in order would wait for the others, in an order that pairs do not share; after Session::leave()
    // nothing is under way anywhere, and after an error others may never come.
    for (Group* const each : {&group_, &up_, &down_}) {
      if (!*each) continue;
      try {
        (*each)->abort();
      } catch (const std::exception&) {  // it goes in any case
      }
    }
  }

  Pending all_reduce(at::Tensor inout, ReduceOp op) override {
    check(inout, "all_reduce");
    const Place place = count("all_reduce", 2 * bytes_of(inout) * (size() - 1) / size());
    if (inout.numel() == 0) return {};
    c10d::AllreduceOptions how;
    how.reduceOp = op == ReduceOp::sum ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{inout.detach().view({-1})};
    return queue(place, {inout}, [&] { return collectives().allreduce(tensors, how); });
  }

  Pending all_gather(at::Tensor out, at::Tensor in) override {
    check_gather(out, in);
    const Place place = count("all_gather", bytes_of(in) * (size() - 1));
    if (in.numel() == 0) return {};
    const at::NoGradGuard no_grad;
    at::Tensor to = as_bytes(out.detach()), from = as_bytes(in.detach());
    return queue(place, {out, in}, [&] { return collectives()._allgather_base(to, from); });
  }

  Pending reduce_scatter(at::Tensor out, at::Tensor in) override {
    check_scatter(out, in);
    const Place place = count("reduce_scatter", bytes_of(out) * (size() - 1));
    if (out.numel() == 0) return {};
    const at::NoGradGuard no_grad;
    at::Tensor to = out.detach().view({-1}), from = in.detach().view({-1});
    return queue(place, {out, in}, [&] { return collectives()._reduce_scatter_base(to, from); });
  }

  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    const int64_t row_bytes = check_rows(out, out_rows, in, in_rows);
    const int64_t kept = in_rows[static_cast<size_t>(rank())];
    const Place place = count("all_to_all", (in.size(0) - kept) * row_bytes);
    const at::NoGradGuard no_grad;
    at::Tensor to = as_bytes(out.detach()), from = as_bytes(in.detach());
    for (int64_t& rows : out_rows) rows *= row_bytes;
    for (int64_t& rows : in_rows) rows *= row_bytes;
    return queue(place, {out, in}, [&] { return collectives().alltoall_base(to, from, out_rows, in_rows); });
  }

  Pending broadcast(at::Tensor inout, int root) override {
    check(inout, "broadcast");
    MOEBIUS_CHECK(root >= 0 && root < size(), "broadcast from rank ", root, " of ", size());
    const bool is_last = (rank() + 1) % size() == root;
    const Place place = count("broadcast", is_last ? 0 : bytes_of(inout));
    if (inout.numel() == 0) return {};
    c10d::BroadcastOptions how;
    how.rootRank = root;
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{as_bytes(inout.detach())};
    return queue(place, {inout}, [&] { return collectives().broadcast(tensors, how); });
  }

  Pending send(at::Tensor in, int to) override {
    check(in, "send");
    const Place place = count("send", bytes_of(in));
    if (in.numel() == 0) return {};
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{as_bytes(in.detach())};
    return queue(place, {in}, [&] { return messages(rank(), to).send(tensors, to, 0); });
  }

  Pending receive(at::Tensor out, int from) override {
    check(out, "receive");
    const Place place = count("receive", 0);
    if (out.numel() == 0) return {};
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{as_bytes(out.detach())};
    return queue(place, {out}, [&] { return messages(from, rank()).recv(tensors, from, 0); });
  }

  void connect(int from, int to) override {
    if (rank() != from && rank() != to) return;
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{at::zeros({1}, at::TensorOptions(at::kByte).device(device_))};
    // Counted nowhere: it is no message of the run.
    const Place place{options_.axis,       "connect", options_.rank,      options_.size,
                      options_.world_rank, 0,         options_.timeout_s, options_.positions};
    start(place, {}, {}, [&] {
      c10d::Backend& group = messages(from, to);
      return rank() == from ? group.send(tensors, to, 0) : group.recv(tensors, from, 0);
    }).wait();
    ops::cuda_plugin()->synchronize(device_.index());
  }

  void barrier() override {
    const Place place = count("barrier", 0);
    c10d::BarrierOptions how;
    how.device = device_;
    queue(place, {}, [&] { return collectives().barrier(how); }).wait();
  }

 private:
  void check(const at::Tensor& tensor, const char* collective) const override {
    MOEBIUS_CHECK(tensor.device() == device_, collective, " over NCCL of a tensor on ", tensor.device(),
                  ", not ", device_);
    MOEBIUS_CHECK(tensor.is_contiguous(), collective, " of a tensor that is not contiguous");
  }

  c10d::Backend& made(Group& group, const char* purpose) {
    const std::lock_guard lock(mutex_);
    if (!group) group = maker_.make(purpose);
    return *group;
  }
  c10d::Backend& collectives() { return made(group_, "all"); }
  // Each pair has connections of its own in a group that only sends to higher, or to lower, ranks.
  c10d::Backend& messages(int from, int to) {
    MOEBIUS_CHECK(from != to && from >= 0 && to >= 0 && from < size() && to < size(), "a message from rank ",
                  from, " to rank ", to, " of ", size());
    return to > from ? made(up_, "up") : made(down_, "down");
  }

  Pending queue(const Place& place, std::vector<at::Tensor> tensors, const Begin& begin) {
    return start(place, std::move(tensors), {}, [&] {
      auto work = begin();
      if (watch_ != nullptr) watch_->add(place, work);
      return work;
    });
  }

  GroupMaker maker_;
  at::Device device_;
  CollectiveWatch* watch_;
  std::mutex mutex_;
  Group up_, down_;
};

// Tensors on the device over one communicator, those on the host over another, made when it is used.
class TwoWays final : public Communicator {
 public:
  using MakeHost = std::function<std::unique_ptr<Communicator>()>;
  TwoWays(std::unique_ptr<Communicator> device, MakeHost make_host)
      : device_(std::move(device)), make_host_(std::move(make_host)) {}

  const std::string& axis() const override { return device_->axis(); }
  int rank() const override { return device_->rank(); }
  int size() const override { return device_->size(); }
  Pending all_reduce(at::Tensor inout, ReduceOp op) override { return way(inout).all_reduce(inout, op); }
  Pending all_gather(at::Tensor out, at::Tensor in) override { return way(in).all_gather(out, in); }
  Pending reduce_scatter(at::Tensor out, at::Tensor in) override { return way(in).reduce_scatter(out, in); }
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    return way(in).all_to_all(out, in, std::move(out_rows), std::move(in_rows));
  }
  Pending broadcast(at::Tensor inout, int root) override { return way(inout).broadcast(inout, root); }
  Pending send(at::Tensor in, int to) override { return way(in).send(in, to); }
  Pending receive(at::Tensor out, int from) override { return way(out).receive(out, from); }
  void connect(int from, int to) override { device_->connect(from, to); }
  void barrier() override { host().barrier(); }
  std::map<std::string, Traffic> traffic() const override {
    std::map<std::string, Traffic> all = device_->traffic();
    if (host_ == nullptr) return all;
    for (const auto& [collective, traffic] : host_->traffic()) {
      all[collective].calls += traffic.calls;
      all[collective].sent_bytes += traffic.sent_bytes;
    }
    return all;
  }

 private:
  Communicator& host() {
    if (host_ == nullptr) host_ = make_host_();
    return *host_;
  }
  Communicator& way(const at::Tensor& tensor) { return tensor.is_cpu() ? host() : *device_; }

  std::unique_ptr<Communicator> device_, host_;
  MakeHost make_host_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(const Rendezvous& rendezvous,
                                                     const GroupOptions& options, at::Device device,
                                                     CollectiveWatch* watch) {
  MOEBIUS_CHECK(device.is_cuda() && device.has_index(), "NCCL on device ", device);
  auto nccl = std::make_unique<NcclCommunicator>(GroupMaker(rendezvous.store().store, options, device),
                                                 options, device, watch);
  GroupOptions of_host = options;
  of_host.axis += "/host";
  return std::make_unique<TwoWays>(
      std::move(nccl), [&rendezvous, of_host] { return make_gloo_communicator(rendezvous, of_host); });
}

std::string why_no_nccl() {
  const ops::PluginStatus& status = ops::load_cuda_plugin();
  if (status.plugin == nullptr) return status.why;
  return status.plugin->nccl_group == nullptr ? "the CUDA plug-in was built without NCCL" : "";
}

}  // namespace moebius::parallel
