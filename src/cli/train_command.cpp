#include "cli/train_command.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/log.h"
#include "base/parallel.h"
#include "ckpt/folder.h"
#include "cli/config_files.h"
#include "cli/launch.h"
#include "cli/number_checks.h"
#include "config/docs.h"
#include "config/dump.h"
#include "ops/device.h"
#include "parallel/communicator.h"
#include "parallel/session.h"
#include "train/trainer.h"

namespace moebius::cli {
namespace {

constexpr int kExitInterrupted = 75;  // EX_TEMPFAIL: not done, start me again

struct TrainArguments {
  std::string config, run_dir, device = "auto", metrics_address, dump;
  std::vector<std::string> overrides;
  bool resume = false, overwrite = false, go_on = false, trace = false;
  int threads = 0, nproc = 0;
};

void print_config(const TrainArguments& arguments) {
  if (arguments.dump == "docs") {
    std::cout << config::markdown_reference();
    return;
  }
  if (arguments.config.empty()) throw_user_error("--dump-config ", arguments.dump, " needs a config file");
  std::cout << config::dump(
      load_config(arguments.config, arguments.overrides),
      arguments.dump == "full" ? config::DumpStyle::kFull : config::DumpStyle::kMinimal);
}

train::RunMode mode_of(const TrainArguments& arguments, const std::filesystem::path& run_dir) {
  if (arguments.go_on) return train::mode_to_go_on(run_dir);
  if (arguments.resume) return train::RunMode::resume;
  return arguments.overwrite ? train::RunMode::overwrite : train::RunMode::fresh;
}

// Processes of a run on one machine share its cores.
int threads_of_each(int num_processes) {
  return std::max(1, num_threads() / num_processes);
}

// Starts the processes; what is wrong for all of them is said once, before there are any.
void launch_all(const TrainArguments& arguments) {
  const config::RunConfig config = load_config(arguments.config, arguments.overrides);
  parallel::make_layout(config, arguments.nproc);
  const bool on_cuda = ops::choose_device(arguments.device).is_cuda();
  parallel::check_backend(config, on_cuda);
  if (on_cuda) parallel::check_gpu_count(config, arguments.nproc, ops::cuda_plugin()->device_count());
  const int code = launch({arguments.nproc, arguments_without_nproc(), threads_of_each(arguments.nproc)});
  if (code != 0) throw CLI::RuntimeError(code);
}

void set_threads(const TrainArguments& arguments, const parallel::Environment& environment) {
  if (arguments.threads > 0) {
    set_num_threads(arguments.threads);
  } else if (environment.local_size > 1 && std::getenv("OMP_NUM_THREADS") == nullptr &&
             num_threads() == ::sysconf(_SC_NPROCESSORS_ONLN)) {
    // A launcher that has bound the process to some of the cores has shared them out already.
    set_num_threads(threads_of_each(environment.local_size));
  }
}

train::TrainResult train_with(const train::TrainOptions& options, parallel::Session* session) {
  try {
    const train::TrainResult result = train::train(options);
    if (session != nullptr) session->leave();
    return result;
  } catch (const parallel::CommunicationFailed& failure) {
    if (session == nullptr) throw;
    if (!session->was_left_alone()) {
      session->end_if_stuck(failure.what(), kExitFailure);
      throw;
    }
    const int code = parallel::exit_code_when_left_alone();  // who is gone has been said
    session->end_if_stuck({}, code);
    throw CLI::RuntimeError(code);
  }
}

void run_train(const TrainArguments& arguments) {
  if (!arguments.dump.empty()) return print_config(arguments);
  if (arguments.config.empty())
    throw_user_error("train needs a config file, for example configs/shakespeare.toml");
  const parallel::Environment environment = parallel::detect_environment();
  if (arguments.nproc > 0 && environment.is_distributed())
    throw_user_error("--nproc is ", arguments.nproc, ", but this is already one process of several (",
                     parallel::describe(environment), "); leave --nproc out, or start without that launcher");
  ops::load_cuda_plugin();
  if (arguments.nproc > 1) return launch_all(arguments);
  set_threads(arguments, environment);
  if (environment.rank > 0) set_log_level(std::max(log_level(), LogLevel::kWarn));
  train::TrainOptions options;
  options.config = load_config(arguments.config, arguments.overrides);
  options.run_dir = arguments.run_dir.empty()
                        ? std::filesystem::path("runs") / std::filesystem::path(arguments.config).stem()
                        : std::filesystem::path(arguments.run_dir);
  options.mode = mode_of(arguments, options.run_dir);
  if (arguments.go_on && options.mode == train::RunMode::resume) {
    const int64_t done = ckpt::list_steps(options.run_dir).front();  // newest
    if (done >= options.config.train.steps) {
      std::cout << "done already: step " << done << "; results in " << options.run_dir.string() << "\n";
      return;
    }
  }
  options.device = ops::choose_device(arguments.device, environment.local_rank);
  ops::use_product_table_of(options.config.train.product_table, options.device);
  if (!arguments.metrics_address.empty()) options.metrics_address = arguments.metrics_address;
  options.trace = arguments.trace;
  std::optional<parallel::Session> session;
  if (environment.is_distributed()) {
    session.emplace(environment, options.config, options.device);
    options.mesh = &session->mesh();
    options.local_ranks = options.device.is_cuda() ? session->ranks_on_device() : environment.local_size;
  } else {
    parallel::make_layout(options.config, 1);
  }
  const train::TrainResult result = train_with(options, session ? &*session : nullptr);
  if (environment.rank > 0) {
    if (result.interrupted && arguments.go_on) throw CLI::RuntimeError(kExitInterrupted);
    return;
  }
  if (!result.sample.empty()) std::cout << "\n" << result.sample << "\n\n";
  std::cout << (result.interrupted ? "interrupted after step " : "done: step ") << result.steps;
  if (result.validation_loss) std::cout << ", validation loss " << *result.validation_loss;
  std::cout << "; results in " << options.run_dir.string() << "\n";
  if (!result.interrupted) return;
  if (arguments.go_on) throw CLI::RuntimeError(kExitInterrupted);
  std::cout << "go on with the same command and --resume\n";
}

}  // namespace

void add_train_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("train", "Train a model as a config file says");
  auto arguments = std::make_shared<TrainArguments>();
  command->add_option("config", arguments->config, "Config file (TOML)");
  command->add_option("--run", arguments->run_dir, "Run folder (default: runs/<name of the config>)");
  command->add_option("--set", arguments->overrides, "Override a field: train.steps=200")
      ->allow_extra_args(false);
  command->add_option("--device", arguments->device, "cpu, cuda or auto")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "cuda", "auto"}));
  command->add_option("--threads", arguments->threads, "CPU threads (default: all cores)")
      ->check(above_zero());
  command
      ->add_option("--nproc", arguments->nproc,
                   "Start this many processes on this machine, which share the batch (docs/distributed.md)")
      ->check(above_zero());
  CLI::Option* resume = command->add_flag("--resume", arguments->resume, "Go on from the newest checkpoint");
  command->add_flag("--overwrite", arguments->overwrite, "Replace the run that is there")->excludes(resume);
  command
      ->add_flag(
          "--continue", arguments->go_on,
          "Resume where there is a checkpoint, start where there is none; nothing when the run is done. "
          "Ends with code 75 when interrupted (for `moebius queue`)")
      ->excludes("--resume")
      ->excludes("--overwrite");
  command->add_option("--metrics-port", arguments->metrics_address,
                      "Serve Prometheus metrics on this port (or HOST:PORT); 0 takes a free one");
  command->add_flag("--trace", arguments->trace,
                    "Write a trace of a few steps to trace.json in the run folder");
  command->add_option("--dump-config", arguments->dump, "Print the config instead: full, minimal, or docs")
      ->check(CLI::IsMember({"full", "minimal", "docs"}));
  command->callback([arguments] { run_train(*arguments); });
}

}  // namespace moebius::cli
