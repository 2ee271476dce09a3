// `moebius energy report RUN`: joules and grams by phase, step and token.
#include <CLI/CLI.hpp>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/concat.h"
#include "base/file.h"
#include "base/units.h"
#include "cli/energy_command.h"
#include "cli/energy_report.h"

namespace moebius::cli {
namespace {

struct ReportArguments {
  std::string run, plot;
  bool json = false;
};

nlohmann::ordered_json part_json(const EnergyPart& part, const EnergyReport& report) {
  nlohmann::ordered_json json;
  json["basis"] = part.estimated ? "estimated" : "measured";
  json["joules"] = part.total_joules;
  if (part.counter_joules) {
    json["counter_joules"] = *part.counter_joules;
    json["phases_over_counter"] = part.total_joules / *part.counter_joules;
  }
  if (part.grams) json["carbon_grams"] = *part.grams;
  if (report.tokens > 0) json["joules_per_token"] = part.total_joules / static_cast<double>(report.tokens);
  if (report.steps > 0) json["joules_per_step"] = part.total_joules / static_cast<double>(report.steps);
  for (size_t i = 0; i < energy::kNumPhases; ++i) {
    if (part.joules[i] <= 0) continue;
    json["phases"][energy::kPhaseNames[i]] = {{"joules", part.joules[i]}, {"seconds", part.seconds[i]}};
    if (part.grams)
      json["phases"][energy::kPhaseNames[i]]["carbon_grams"] =
          *part.grams * part.joules[i] / part.total_joules;
  }
  json["methods"] = part.methods;
  return json;
}

void print_part(const char* name, const EnergyPart& part, const EnergyReport& report) {
  const double seconds = energy::sum_of(part.seconds);
  std::cout << name << ", " << (part.estimated ? "estimated" : "measured") << "\n"
            << std::left << std::setw(12) << "  phase" << std::right << std::setw(14) << "joules"
            << std::setw(9) << "energy" << std::setw(8) << "time" << std::setw(9) << "watts" << std::setw(12)
            << "J/step" << std::setw(12) << "mJ/token" << (part.grams ? "       gCO2e" : "") << "\n";
  const auto row = [&](const std::string& phase, double joules, double time) {
    std::cout << "  " << std::left << std::setw(10) << phase << std::right << std::setw(14)
              << format_fixed(joules, 2) << std::setw(7) << format_fixed(100 * joules / part.total_joules, 1)
              << " %" << std::setw(6) << format_fixed(seconds > 0 ? 100 * time / seconds : 0, 1) << " %"
              << std::setw(9) << (time > 0 ? format_fixed(joules / time, 1) : "-") << std::setw(12)
              << (report.steps > 0 ? format_fixed(joules / static_cast<double>(report.steps), 3) : "-")
              << std::setw(12)
              << (report.tokens > 0 ? format_fixed(1e3 * joules / static_cast<double>(report.tokens), 4)
                                    : "-");
    if (part.grams) std::cout << std::setw(12) << format_fixed(*part.grams * joules / part.total_joules, 4);
    std::cout << "\n";
  };
  for (size_t i = 0; i < energy::kNumPhases; ++i)
    if (part.joules[i] > 0) row(energy::kPhaseNames[i], part.joules[i], part.seconds[i]);
  row("all", part.total_joules, seconds);
  if (part.counter_joules && !part.estimated)
    std::cout << "  phases sum to " << format_fixed(100 * part.total_joules / *part.counter_joules, 2)
              << " % of the counter's " << format_fixed(*part.counter_joules, 1) << " J\n";
  for (const std::string& method : part.methods) std::cout << "  method: " << method << "\n";
  std::cout << "\n";
}

void run_report(const ReportArguments& arguments) {
  const EnergyReport report = read_energy_report(arguments.run);
  if (!arguments.plot.empty())
    write_file_atomic(arguments.plot, plot_energy(concat("energy of ", arguments.run), report));
  if (arguments.json) {
    nlohmann::ordered_json json;
    json["run"] = arguments.run;
    json["sessions"] = report.sessions;
    json["seconds"] = report.seconds;
    json["steps"] = report.steps;
    json["tokens"] = report.tokens;
    if (report.gpu) json["gpu"] = part_json(*report.gpu, report);
    if (report.host) json["host"] = part_json(*report.host, report);
    if (!report.grids.empty()) json["grids"] = report.grids;
    std::cout << json.dump(2) << "\n";
    return;
  }
  std::cout << arguments.run << ": " << report.steps << " steps, "
            << format_count(static_cast<double>(report.tokens)) << " tokens, "
            << format_duration(report.seconds) << ", " << report.sessions
            << (report.sessions == 1 ? " process\n\n" : " processes\n\n");
  if (report.gpu) print_part("GPU", *report.gpu, report);
  if (report.host) print_part("host", *report.host, report);
  for (const std::string& grid : report.grids) std::cout << "carbon: " << grid << "\n";
  if (report.grids.empty())
    std::cout << "carbon: no intensity was given (energy.grid_intensity, energy.grid_trace)\n";
  if (!arguments.plot.empty()) std::cout << "plot: " << arguments.plot << "\n";
}

}  // namespace

void add_energy_report_command(CLI::App& energy) {
  CLI::App* command =
      energy.add_subcommand("report", "Joules and grams of CO2 of a run, by phase, step and token");
  auto a = std::make_shared<ReportArguments>();
  command->add_option("run", a->run, "Run folder")->required();
  command->add_option("--plot", a->plot, "Also draw power over time and the phases' shares to this SVG");
  command->add_flag("--json", a->json, "Print JSON");
  command->callback([a] { run_report(*a); });
}

}  // namespace moebius::cli
