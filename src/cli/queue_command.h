// `moebius queue`: carbon-aware job queue; `run` drives it, `simulate` replays jobs against a recorded grid.
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

// Adds the subcommand; its work happens in the callbacks, UserErrors leave as exceptions.
void add_queue_command(CLI::App& app);
// Adds `simulate` below it (cli/queue_simulate_command.cpp).
void add_queue_simulate_command(CLI::App& queue);
// Adds add, list, show, cancel, pause and resume (cli/queue_jobs_command.cpp).
void add_queue_jobs_commands(CLI::App& queue);
// Adds `forecast` (cli/queue_forecast_command.cpp).
void add_queue_forecast_command(CLI::App& queue);
// Adds `run` (cli/queue_run_command.cpp).
void add_queue_run_command(CLI::App& queue);

}  // namespace moebius::cli
