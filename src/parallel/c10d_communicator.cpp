#include "parallel/c10d_communicator.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <optional>

#include "base/check.h"
#include "base/error.h"
#include "parallel/c10d_base.h"
#include "parallel/c10d_store.h"

#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

namespace moebius::parallel {
namespace {

bool is_half(const at::Tensor& tensor) {
  return tensor.scalar_type() == at::kBFloat16 || tensor.scalar_type() == at::kHalf;
}

// How many ranks `rank` sends to in Gloo's broadcast from rank `root`: a binomial tree.
int64_t sends_of_broadcast(int rank, int root, int size) {
  const int place = (rank + size - root) % size;
  int64_t count = 0;
  for (int bit = 1; bit < size && (place & bit) == 0; bit <<= 1) count += (place | bit) < size;
  return count;
}

class GlooCommunicator final : public C10dCommunicator {
 public:
  using C10dCommunicator::C10dCommunicator;

  Pending all_reduce(at::Tensor inout, ReduceOp op) override {
    check(inout, "all_reduce");
    const at::NoGradGuard no_grad;
    at::Tensor summed = inout.detach().view({-1});
    const bool widens = is_half(inout);
    if (widens) summed = summed.to(at::kFloat);
    const Place place = count("all_reduce", 2 * bytes_of(summed) * (size() - 1) / size());
    if (inout.numel() == 0) return {};
    c10d::AllreduceOptions how;
    how.reduceOp = op == ReduceOp::sum ? c10d::ReduceOp::SUM : c10d::ReduceOp::MAX;
    std::vector<at::Tensor> tensors{summed};
    std::function<void()> finish;
    if (widens) finish = [inout, summed] { inout.detach().view({-1}).copy_(summed); };
    return start(place, {inout, summed}, std::move(finish), [&] { return group_->allreduce(tensors, how); });
  }

  Pending all_gather(at::Tensor out, at::Tensor in) override {
    check_gather(out, in);
    const Place place = count("all_gather", bytes_of(in) * (size() - 1));
    if (in.numel() == 0) return {};
    const at::NoGradGuard no_grad;
    at::Tensor to = as_bytes(out.detach()), from = as_bytes(in.detach());
    return start(place, {out, in}, {}, [&] { return group_->_allgather_base(to, from); });
  }

  Pending reduce_scatter(at::Tensor out, at::Tensor in) override {
    check_scatter(out, in);
    const Place place = count("reduce_scatter", bytes_of(out) * (size() - 1));
    if (out.numel() == 0) return {};
    const at::NoGradGuard no_grad;
    at::Tensor parts = at::empty({size(), out.numel()}, in.options().requires_grad(false));
    auto finish = [out, parts] {
      const at::Tensor flat = out.detach().view({-1});
      if (!is_half(out)) {
        flat.copy_(parts[0]);
        for (int64_t r = 1; r < parts.size(0); ++r) flat.add_(parts[r]);
        return;
      }
      const at::Tensor sum = parts[0].to(at::kFloat);
      for (int64_t r = 1; r < parts.size(0); ++r) sum.add_(parts[r]);
      flat.copy_(sum);
    };
    at::Tensor to = as_bytes(parts), from = as_bytes(in.detach());
    std::vector<int64_t> equal_out, equal_in;
    return start(place, {out, in, parts}, std::move(finish),
                 [&] { return group_->alltoall_base(to, from, equal_out, equal_in); });
  }

  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    const int64_t row_bytes = check_rows(out, out_rows, in, in_rows);
    const int64_t kept = in_rows[static_cast<size_t>(rank())];
    const Place place = count("all_to_all", (in.size(0) - kept) * row_bytes);
    const at::NoGradGuard no_grad;
    // A tensor of no rows has no memory, which Gloo does not take.
    const at::Tensor nothing = at::empty({1}, at::kByte);
    at::Tensor to = out.numel() > 0 ? as_bytes(out.detach()) : nothing.narrow(0, 0, 0),
               from = in.numel() > 0 ? as_bytes(in.detach()) : nothing.narrow(0, 0, 0);
    for (int64_t& rows : out_rows) rows *= row_bytes;
    for (int64_t& rows : in_rows) rows *= row_bytes;
    return start(place, {out, in, nothing}, {},
                 [&] { return group_->alltoall_base(to, from, out_rows, in_rows); });
  }

  Pending broadcast(at::Tensor inout, int root) override {
    check(inout, "broadcast");
    MOEBIUS_CHECK(root >= 0 && root < size(), "broadcast from rank ", root, " of ", size());
    const Place place = count("broadcast", bytes_of(inout) * sends_of_broadcast(rank(), root, size()));
    if (inout.numel() == 0) return {};
    c10d::BroadcastOptions how;
    how.rootRank = root;
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{as_bytes(inout.detach())};
    return start(place, {inout}, {}, [&] { return group_->broadcast(tensors, how); });
  }

  Pending send(at::Tensor in, int to) override {
    check(in, "send");
    const Place place = count("send", bytes_of(in));
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{as_bytes(in.detach())};
    return start(place, {in}, {}, [&] { return group_->send(tensors, to, 0); });
  }

  Pending receive(at::Tensor out, int from) override {
    check(out, "receive");
    const Place place = count("receive", 0);
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> tensors{as_bytes(out.detach())};
    return start(place, {out}, {}, [&] { return group_->recv(tensors, from, 0); });
  }

  void barrier() override {
    const Place place = count("barrier", 0);
    start(place, {}, {}, [&] { return group_->barrier(); }).wait();
  }

 private:
  void check(const at::Tensor& tensor, const char* collective) const override {
    MOEBIUS_CHECK(tensor.is_cpu(), collective, " over Gloo of a tensor on ", tensor.device());
    MOEBIUS_CHECK(tensor.is_contiguous(), collective, " of a tensor that is not contiguous");
  }
};

// The address of this machine on the network that leads to the rendezvous; nothing when there is no way.
std::optional<std::string> own_address(const std::string& host, int port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_DGRAM;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) return std::nullopt;
  std::optional<std::string> address;
  for (const addrinfo* each = found; each != nullptr && !address; each = each->ai_next) {
    const int fd = ::socket(each->ai_family, SOCK_DGRAM, 0);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t length = sizeof own;
    char text[NI_MAXHOST];
    // Connecting a datagram socket sends nothing; it chooses the way.
    if (::connect(fd, each->ai_addr, each->ai_addrlen) == 0 &&
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&own), &length) == 0 &&
        ::getnameinfo(reinterpret_cast<sockaddr*>(&own), length, text, sizeof text, nullptr, 0,
                      NI_NUMERICHOST) == 0)
      address = text;
    ::close(fd);
  }
  ::freeaddrinfo(found);
  return address;
}

std::shared_ptr<gloo::transport::Device> device_for(const Rendezvous::Options& rendezvous) {
  if (const char* interface = std::getenv("GLOO_SOCKET_IFNAME"); interface != nullptr && *interface != 0)
    return c10d::ProcessGroupGloo::createDeviceForInterface(interface);
  if (const auto address = own_address(rendezvous.host, rendezvous.port))
    return c10d::ProcessGroupGloo::createDeviceForHostname(*address);
  return c10d::ProcessGroupGloo::createDefaultDevice();
}

}  // namespace

std::unique_ptr<Communicator> make_gloo_communicator(const Rendezvous& rendezvous,
                                                     const GroupOptions& options) {
  const Rendezvous::Store& store = rendezvous.store();
  try {
    auto how = c10d::ProcessGroupGloo::Options::create(
        std::chrono::milliseconds(static_cast<int64_t>(options.timeout_s * 1000)));
    how->devices.push_back(device_for(store.options));
    auto names = c10::make_intrusive<c10d::PrefixStore>("group/" + options.name, store.store);
    auto group =
        c10::make_intrusive<c10d::ProcessGroupGloo>(std::move(names), options.rank, options.size, how);
    return std::make_unique<GlooCommunicator>(std::move(group), options);
  } catch (const std::exception& error) {
    const std::string text = error.what();
    throw_user_error("axis ", options.axis, ": rank ", options.rank, " of ", options.size, " (world rank ",
                     options.world_rank, ") does not reach the others through Gloo (",
                     text.substr(0, text.find('\n')),
                     "); set GLOO_SOCKET_IFNAME to the network interface that all ranks share, such as eth0");
  }
}

}  // namespace moebius::parallel
