// `moebius energy`: what runs cost (report), what clocks would save (profile, simulate).
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

// Adds the subcommand; its work happens in the callbacks, UserErrors leave as exceptions.
void add_energy_command(CLI::App& app);
// What is below it (cli/energy_<name>_command.cpp).
void add_energy_report_command(CLI::App& energy);
void add_energy_simulate_command(CLI::App& energy);
void add_energy_profile_command(CLI::App& energy);

}  // namespace moebius::cli
