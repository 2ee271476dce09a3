#include "cli/energy_command.h"

#include <CLI/CLI.hpp>

namespace moebius::cli {

void add_energy_command(CLI::App& app) {
  CLI::App* command =
      app.add_subcommand("energy", "What runs cost in joules, and what other clocks would save");
  command->require_subcommand(1);
  add_energy_report_command(*command);
  add_energy_simulate_command(*command);
  add_energy_profile_command(*command);
}

}  // namespace moebius::cli
