// What the programs of this folder share: commands parsed and run, errors said, exit codes 0 done, 1 failure,
// 2 wrong input.
#pragma once

#include <CLI/CLI.hpp>
#include <exception>
#include <new>

#include "base/error.h"
#include "base/log.h"

namespace moebius::cli {

// `add_commands` puts them on the CLI::App that it is given.
template <class AddCommands>
int run_app(int argc, char** argv, const AddCommands& add_commands) {
  try {
    CLI::App app{"Moebius trains, compresses and serves mixture-of-experts language models", "moebius"};
    app.require_subcommand(1);
    app.set_version_flag("--version", MOEBIUS_VERSION);
    add_commands(app);
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
  } catch (const UserError& error) {
    log_error(error.what());
    return kExitUserError;
  } catch (const std::bad_alloc&) {
    log_error("out of memory; `moebius plan CONFIG` tells what a run needs");
    return kExitFailure;
  } catch (const std::exception& error) {
    log_error(error.what());
    return kExitFailure;
  }
}

}  // namespace moebius::cli
