// The program: one subcommand per file (cli/<name>_command.h). Exit codes: 0 done, 1 failure, 2 wrong input.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "base/check.h"
#include "base/error.h"
#include "base/heap.h"
#include "base/log.h"
#include "cli/bench_command.h"
#include "cli/ckpt_command.h"
#include "cli/convert_command.h"
#include "cli/data_command.h"
#include "cli/doctor_command.h"
#include "cli/energy_command.h"
#include "cli/eval_command.h"
#include "cli/generate_command.h"
#include "cli/moe_command.h"
#include "cli/plan_command.h"
#include "cli/quantize_command.h"
#include "cli/queue_command.h"
#include "cli/train_command.h"
#include "cli/verify_command.h"

namespace moebius::cli {
namespace {

int run(int argc, char** argv) {
  CLI::App app{"Moebius trains, compresses and serves mixture-of-experts language models", "moebius"};
  app.require_subcommand(1);
  app.set_version_flag("--version", MOEBIUS_VERSION);
  add_train_command(app);
  add_eval_command(app);
  add_generate_command(app);
  add_plan_command(app);
  add_data_command(app);
  add_convert_command(app);
  add_quantize_command(app);
  add_ckpt_command(app);
  add_verify_command(app);
  add_moe_command(app);
  add_queue_command(app);
  add_energy_command(app);
  add_bench_command(app);
  add_doctor_command(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    return app.exit(asked);
  } catch (const CLI::RuntimeError& asked) {  // a command that ends with a code of its own
    return asked.get_exit_code();
  } catch (const CLI::ParseError& error) {
    app.exit(error);
    return kExitUserError;
  }
  return kExitOk;
}

}  // namespace
}  // namespace moebius::cli

int main(int argc, char** argv) {
  moebius::keep_freed_memory();
  try {
    return moebius::cli::run(argc, argv);
  } catch (const moebius::UserError& error) {
    moebius::log_error(error.what());
    return moebius::kExitUserError;
  } catch (const std::bad_alloc&) {
    moebius::log_error("out of memory; `moebius plan CONFIG` tells what a run needs");
    return moebius::kExitFailure;
  } catch (const std::exception& error) {
    moebius::log_error(error.what());
    return moebius::kExitFailure;
  }
}
