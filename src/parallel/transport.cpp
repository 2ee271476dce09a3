#include "parallel/transport.h"

#include <algorithm>
#include <fstream>
#include <map>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "ops/device.h"
#include "parallel/nccl_communicator.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {
namespace {

std::string boot_number() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string number;
  std::getline(file, number);
  return number;
}

}  // namespace

void check_backend(const config::RunConfig& config, bool on_cuda) {
  if (config.parallel.backend == "nccl") {
    const std::string why = on_cuda ? why_no_nccl() : std::string();
    if (!on_cuda)
      throw_user_error(
          "parallel.backend is 'nccl', but the run is on the CPU, and NCCL moves data between GPUs only; set "
          "it to 'auto' or 'gloo', or run on GPUs with --device cuda");
    if (!why.empty())
      throw_user_error("parallel.backend is 'nccl', but ", why, "; or set it to 'auto' or 'gloo'");
  }
  if (on_cuda && config.train.cuda_graph)
    throw_user_error(
        "train.cuda_graph is true, but the run has several processes, and their exchanges, whose sizes "
        "follow "
        "the routing, are begun by the host in each step; set it to false, or start one process");
}

void check_gpu_count(const config::RunConfig& config, int num_processes, int num_gpus) {
  if (config.parallel.backend != "nccl" || num_processes <= num_gpus) return;
  throw_user_error("parallel.backend is 'nccl', which needs a GPU for each process, but there are ",
                   num_processes, " processes and ", num_gpus, " GPU", num_gpus == 1 ? "" : "s",
                   " on this machine; start at most ", num_gpus,
                   " with --nproc, or set parallel.backend to 'auto' or 'gloo': processes then share GPUs");
}

Transport choose_transport(const std::string& backend, const std::vector<std::string>& gpus, int rank) {
  Transport transport;
  std::map<std::string, int> first_on;
  std::string why;
  for (size_t r = 0; r < gpus.size(); ++r) {
    if (gpus[r].empty()) {
      if (why.empty()) why = concat("rank ", r, " runs on the CPU");
      continue;
    }
    const auto [at, is_new] = first_on.try_emplace(gpus[r], static_cast<int>(r));
    if (!is_new && why.empty())
      why = concat("ranks ", at->second, " and ", r, " share the GPU ", gpus[r].substr(0, gpus[r].find(' ')));
  }
  const std::string& own = gpus[static_cast<size_t>(rank)];
  if (!own.empty()) transport.ranks_on_device = static_cast<int>(std::count(gpus.begin(), gpus.end(), own));
  if (why.empty() && backend != "gloo") {
    transport.kind = Transport::Kind::nccl;
  } else if (backend == "nccl") {
    throw_user_error("parallel.backend is 'nccl', which needs a GPU for each process, but ", why,
                     "; start one process per GPU (CUDA_VISIBLE_DEVICES says which a process sees), or set "
                     "parallel.backend to 'auto' or 'gloo'");
  }
  return transport;
}

std::string gpu_name(at::Device device) {
  if (!device.is_cuda()) return {};
  kernels::DeviceInfo info{};
  MOEBIUS_CHECK(ops::cuda_plugin()->device_info(device.index(), &info), "no GPU ", device);
  return concat(info.pci_bus_id, " of ", boot_number());
}

std::vector<std::string> exchange_gpus(Rendezvous& rendezvous, at::Device device) {
  rendezvous.set(concat("gpu/", rendezvous.options().rank), concat("=", gpu_name(device)));
  std::vector<std::string> gpus;
  for (int rank = 0; rank < rendezvous.options().size; ++rank)
    gpus.push_back(rendezvous.get(concat("gpu/", rank)).substr(1));
  return gpus;
}

std::string describe(const Transport& transport, int num_ranks) {
  if (transport.kind == Transport::Kind::nccl) return concat("NCCL between ", num_ranks, " GPUs");
  if (transport.device.is_cpu()) return concat("Gloo between ", num_ranks, " processes");
  return concat("Gloo between ", num_ranks, " processes, through host memory (",
                transport.ranks_on_device > 1 ? "they share GPUs" : "parallel.backend", ")");
}

}  // namespace moebius::parallel
