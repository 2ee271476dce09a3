#include "parallel/session.h"

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "base/log.h"
#include "config/dump.h"
#include "config/load.h"
#include "ops/device.h"
#include "parallel/c10d_communicator.h"
#include "parallel/collective_watch.h"
#include "parallel/lifeline.h"
#include "parallel/positions.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {
namespace {

// How long news of a death may be behind the failure of a collective.
constexpr double kSecondsForNews = 2;

// How the config of this rank differs from that of the first; empty when it does not.
std::string difference_from_first(Rendezvous& rendezvous, const config::RunConfig& config) {
  const int rank = rendezvous.options().rank;
  const config::RunConfig first = config::parse_run_config(rendezvous.get("config"), "the config of rank 0");
  const std::vector<config::Difference> differences = config::diff(first, config);
  if (differences.empty()) return {};
  return concat("rank ", rank, " has another config than rank 0 (rank 0 -> rank ", rank, "):\n",
                config::describe_differences(differences));
}

// Refuses different configs on all ranks with the same words. `before_refusal` is called before any of them
// ends.
void compare_configs(Rendezvous& rendezvous, const config::RunConfig& config,
                     const std::function<void()>& before_refusal) {
  const int rank = rendezvous.options().rank;
  if (rank == 0) {
    rendezvous.set("config", config::dump(config, config::DumpStyle::kFull));
    std::string verdict;
    for (int other = 1; other < rendezvous.options().size; ++other)
      verdict += rendezvous.get(concat("difference/", other));
    if (!verdict.empty()) before_refusal();
    rendezvous.set("verdict", verdict);
  } else {
    rendezvous.set(concat("difference/", rank), difference_from_first(rendezvous, config));
  }
  const std::string verdict = rendezvous.get("verdict");
  if (verdict.empty()) return;
  if (rank > 0) {
    before_refusal();
    rendezvous.add("verdict/read", 1);
  } else {
    // It serves what the others still read.
    for (int tries = 0; tries < 500 && rendezvous.add("verdict/read", 0) < rendezvous.options().size - 1;
         ++tries)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  throw_user_error(verdict, verdict.ends_with('\n') ? "" : "\n",
                   "start all ranks with the same config file and the same --set options");
}

}  // namespace

struct Session::Parts {
  std::mutex mutex;
  std::condition_variable changed;
  bool ends = false, is_refused = false;
  std::unique_ptr<Rendezvous> rendezvous;
  std::unique_ptr<Lifeline> lifeline;
  std::unique_ptr<CollectiveWatch> watch;
  Transport transport;
  std::unique_ptr<Mesh> mesh;

  // Also when the session could not be made: the main thread is on its way out.
  ~Parts() {
    {
      const std::lock_guard lock(mutex);
      ends = true;
    }
    changed.notify_all();
  }

  // From here on all end by themselves: whoever goes first has not died.
  void refuse() {
    const std::lock_guard lock(mutex);
    is_refused = true;
  }

  Transport agree_on_transport(const config::RunConfig& config, at::Device device) {
    const std::vector<std::string> gpus = exchange_gpus(*rendezvous, device);
    Transport chosen;
    try {
      chosen = choose_transport(config.parallel.backend, gpus, rendezvous->options().rank);
    } catch (const UserError&) {
      refuse();
      rendezvous->meet("refused");  // the first serves what the others still read
      throw;
    }
    chosen.device = device;
    if (chosen.kind == Transport::Kind::nccl) {
      watch = std::make_unique<CollectiveWatch>([this](const std::string& text) { on_failure(text); });
      chosen.watch = watch.get();
    }
    return chosen;
  }

  // An exchange on the device has failed or is late. In a thread of the watch: the main thread may wait for
  // the device, for ever.
  void on_failure(const std::string& text) {
    // Where a rank is gone, who it is will be said, and the process be ended, by on_death().
    if (lifeline->death_within(kSecondsForNews)) return;
    {
      // Where the main thread waits for an exchange between hosts, it says the same.
      std::unique_lock lock(mutex);
      if (changed.wait_for(lock, std::chrono::seconds(1), [&] { return ends || is_refused; })) return;
    }
    log_error(text);
    ::_exit(kExitFailure);
  }

  // In a thread of the lifeline.
  void on_death(const std::string& text) {
    const int rank = rendezvous->options().rank;
    {
      const std::lock_guard lock(mutex);
      if (is_refused) return;  // all end by themselves
    }
    // One of those that are left speaks; of two, the first may be the one that ended.
    const bool speaks = rank == 0 || (rank == 1 && text.starts_with("rank 0 "));
    if (speaks && !process_variable(kLaunchedVariable))
      log_error(text, "; all ranks end, and the same command with --resume goes on from the last checkpoint");
    std::unique_lock lock(mutex);
    const bool ended =
        changed.wait_for(lock, std::chrono::duration<double>(kSecondsToEnd), [&] { return ends; });
    // The main thread waits for one who will not come, or computes.
    if (!ended) ::_exit(exit_code_when_left_alone());
  }
};

int exit_code_when_left_alone() {
  return process_variable(kLaunchedVariable) ? kExitLeftAlone : kExitFailure;
}

Session::Session(const Environment& environment, const config::RunConfig& config, at::Device device)
    : parts_(std::make_unique<Parts>()) {
  check_backend(config, device.is_cuda());
  set_up_c10d();
  const Layout layout = make_layout(config, environment.world_size);
  if (environment.rank == 0) log_info(describe(environment));
  Rendezvous::Options meeting{environment.host, environment.port, environment.rank, environment.world_size,
                              config.parallel.timeout_s};
  if (const auto fd = process_variable(kListenVariable); fd && process_variable(kLaunchedVariable))
    meeting.listen_fd = std::atoi(fd->c_str());
  parts_->rendezvous = std::make_unique<Rendezvous>(meeting);
  parts_->lifeline = std::make_unique<Lifeline>(
      *parts_->rendezvous, [parts = parts_.get()](const std::string& text) { parts->on_death(text); });
  compare_configs(*parts_->rendezvous, config, [this] { parts_->refuse(); });
  parts_->transport = parts_->agree_on_transport(config, device);
  parts_->mesh =
      std::make_unique<Mesh>(layout, *parts_->rendezvous, config.parallel.timeout_s, parts_->transport,
                             std::make_shared<Positions>(*parts_->rendezvous), config.parallel.overlap);
  if (environment.rank == 0)
    log_info(describe(layout), "; ", describe(parts_->transport, environment.world_size));
}

Session::~Session() = default;

void Session::leave() {
  // Exchanges that are still under way on the GPU need the others.
  if (const at::Device device = parts_->transport.device; device.is_cuda())
    ops::cuda_plugin()->synchronize(device.index());
  parts_->lifeline->leave();
}

bool Session::was_left_alone() const {
  return parts_->lifeline->death_within(kSecondsForNews).has_value();
}

void Session::end_if_stuck(const std::string& text, int code) const {
  if (parts_->transport.kind != Transport::Kind::nccl) return;
  if (!text.empty()) log_error(text);
  std::cout.flush();
  ::_exit(code);
}

const Mesh& Session::mesh() const {
  return *parts_->mesh;
}

int Session::ranks_on_device() const {
  return parts_->transport.ranks_on_device;
}

}  // namespace moebius::parallel
