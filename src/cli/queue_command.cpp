#include "cli/queue_command.h"

#include <CLI/CLI.hpp>

namespace moebius::cli {

void add_queue_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("queue", "Run jobs when and where the grid is clean");
  command->require_subcommand(1);
  add_queue_jobs_commands(*command);
  add_queue_forecast_command(*command);
  add_queue_run_command(*command);
  add_queue_simulate_command(*command);
}

}  // namespace moebius::cli
