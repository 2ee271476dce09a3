#include "parallel/session.h"

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/concat.h"
#include "base/error.h"
#include "base/log.h"
#include "config/dump.h"
#include "config/load.h"

namespace moebius::parallel {
namespace {

// The config of every rank against that of the first.
void compare_configs(Rendezvous& rendezvous, const config::RunConfig& config) {
  const int rank = rendezvous.options().rank;
  if (rank == 0) {
    rendezvous.set("config", config::dump(config, config::DumpStyle::kFull));
  } else {
    const config::RunConfig first =
        config::parse_run_config(rendezvous.get("config"), "the config of rank 0");
    const std::vector<config::Difference> differences = config::diff(first, config);
    if (!differences.empty())
      throw_user_error("rank ", rank, " has another config than rank 0 (rank 0 -> rank ", rank, "):\n",
                       config::describe_differences(differences),
                       "start all ranks with the same config file and the same --set options");
  }
  rendezvous.meet("config");
}

}  // namespace

void check_backend(const config::ParallelConfig& config, bool on_cuda) {
  if (config.backend == "nccl" && !on_cuda)
    throw_user_error(
        "parallel.backend is 'nccl', but the run is on the CPU, and NCCL moves data between GPUs only; set "
        "it to 'auto' or 'gloo', or run on GPUs with --device cuda");
  if (on_cuda)
    throw_user_error(
        "several processes on GPUs (NCCL) are not there yet; add --device cpu, or start one process");
}

Session::Session(const Environment& environment, const config::RunConfig& config, bool on_cuda) {
  check_backend(config.parallel, on_cuda);
  const Layout layout = make_layout(config, environment.world_size);
  if (environment.rank == 0) log_info(describe(environment));
  rendezvous_ =
      std::make_unique<Rendezvous>(Rendezvous::Options{environment.host, environment.port, environment.rank,
                                                       environment.world_size, config.parallel.timeout_s});
  compare_configs(*rendezvous_, config);
  mesh_ = std::make_unique<Mesh>(layout, *rendezvous_, config.parallel.timeout_s);
  if (environment.rank == 0) log_info(describe(layout));
}

void Session::leave() {
  // The first rank serves the rendezvous, so it goes last.
  const int rank = rendezvous_->options().rank;
  mesh_->world().barrier();
  rendezvous_->add("left", 1);
  if (rank > 0) return;
  for (int waited = 0; rendezvous_->add("left", 0) < rendezvous_->options().size && waited < 1000; ++waited)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

}  // namespace moebius::parallel
