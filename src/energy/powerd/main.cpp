// moebius-powerd: lets unprivileged training processes ask for GPU clocks (energy/powerd/power_service.h says
// for what, and by whom). Read-only unless told otherwise.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "energy/powerd/guard.h"
#include "energy/powerd/power_server.h"

namespace moebius::energy::powerd {
namespace {

PowerServer* running = nullptr;

void on_signal(int) {
  if (running != nullptr) running->stop();
}

struct DaemonArguments {
  std::string socket = "/run/moebius-powerd.sock", locks, nvml = kNvmlLibrary;
  ServiceOptions service;
  bool reset = false;
};

int serve(const DaemonArguments& arguments) {
  const auto nvml = Nvml::open(arguments.nvml);
  if (!nvml) throw UserError(nvml.error().message);
  PowerService service(*nvml, arguments.service, system_clock(),
                       [&](const std::vector<std::string>& uuids) { write_locks(arguments.locks, uuids); });
  PowerServer server(arguments.socket, service);
  running = &server;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  log_info("moebius-powerd at ", arguments.socket, ", ", service.uuids().size(), " GPUs, ",
           arguments.service.may_set ? "may set clocks" : "read-only");
  server.run();
  running = nullptr;
  return kExitOk;
}

int run_daemon(int argc, char** argv) {
  CLI::App app{"Lets training processes ask for GPU clocks; read-only unless --may-set-clocks is given",
               "moebius-powerd"};
  DaemonArguments a;
  app.add_option("--socket", a.socket, "Unix socket to listen on")->capture_default_str();
  app.add_option("--locks", a.locks, "File that lists locked GPUs (default: beside the socket)");
  app.add_flag("--may-set-clocks", a.service.may_set,
               "Allow clocks to be locked: only on a machine that is yours to tune");
  app.add_option("--allow-uid", a.service.allowed_uids, "User who may lock clocks, besides root; repeatable");
  app.add_option("--min-mhz", a.service.min_mhz, "Lowest clock that is allowed")->capture_default_str();
  app.add_option("--max-mhz", a.service.max_mhz, "Highest clock that is allowed")->capture_default_str();
  app.add_option("--longest-lease", a.service.longest_lease_seconds,
                 "Seconds after which a lock ends unless renewed")
      ->check(CLI::Range(1.0, 86400.0))
      ->capture_default_str();
  app.add_option("--nvml", a.nvml, "NVML's library")->capture_default_str();
  app.add_flag("--reset", a.reset, "Reset what an earlier daemon left locked, and end");
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {
    return app.exit(asked);
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return kExitUserError;
  }
  if (a.locks.empty()) a.locks = a.socket + ".locks";
  if (const int count = reset_listed(a.locks, a.nvml); count > 0)
    log_warn("an earlier daemon left ", count, " GPUs with locked clocks; they are reset");
  if (a.reset) return kExitOk;
  return run_guarded(a.locks, a.nvml, [&] { return serve(a); });
}

}  // namespace
}  // namespace moebius::energy::powerd

int main(int argc, char** argv) {
  try {
    return moebius::energy::powerd::run_daemon(argc, argv);
  } catch (const moebius::UserError& error) {
    moebius::log_error(error.what());
    return moebius::kExitUserError;
  }
}
