// `moebius energy simulate`: what governor policies would have saved on recorded tables of clocks.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "base/concat.h"
#include "base/error.h"
#include "cli/energy_command.h"
#include "energy/clocks/replay.h"

namespace moebius::cli {
namespace {

namespace clocks = energy::clocks;

struct ReplayArguments {
  std::string table, only, gpu;
  std::vector<std::string> policies = clocks::policy_names();
  std::vector<double> switch_ms{20};
  double epsilon = 0.03, hours = 4;
  int64_t micro_batches = 8;
  bool json = false, summary = false;
};

struct ReplayRow {
  const clocks::ClockTable* table = nullptr;
  double switch_ms = 0;
  clocks::ReplayResult result;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// A policy over all tables at one switching time.
struct PolicySummary {
  double switch_ms = 0;
  std::string policy;
  std::vector<double> savings, slowdowns;
  int64_t unavailable = 0;
  // Tables where own saves at least as much; out of those where this policy is available.
  int64_t own_at_least = 0;
};

std::vector<PolicySummary> summarize_rows(const std::vector<ReplayRow>& rows,
                                          const ReplayArguments& arguments) {
  std::vector<PolicySummary> summaries;
  const auto own_of = [&](const ReplayRow& row) -> const ReplayRow* {
    for (const ReplayRow& other : rows)
      if (other.table == row.table && other.switch_ms == row.switch_ms && other.result.policy == "own")
        return &other;
    return nullptr;
  };
  for (const double switch_ms : arguments.switch_ms) {
    for (const std::string& policy : arguments.policies) {
      PolicySummary summary;
      summary.switch_ms = switch_ms;
      summary.policy = policy;
      for (const ReplayRow& row : rows) {
        if (row.switch_ms != switch_ms || row.result.policy != policy) continue;
        if (!row.result.available) {
          ++summary.unavailable;
          continue;
        }
        summary.savings.push_back(row.result.saving());
        summary.slowdowns.push_back(row.result.slowdown());
        const ReplayRow* own = own_of(row);
        if (own != nullptr) summary.own_at_least += own->result.saving() >= row.result.saving() - 1e-9;
      }
      summaries.push_back(std::move(summary));
    }
  }
  return summaries;
}

nlohmann::ordered_json row_json(const ReplayRow& row, const ReplayArguments& arguments) {
  nlohmann::ordered_json json;
  json["basis"] = "simulated over recorded tables";
  json["table"] = row.table->id;
  json["gpu"] = row.table->gpu;
  json["knob"] = row.table->knob;
  json["policy"] = row.result.policy;
  json["epsilon"] = arguments.epsilon;
  json["switch_ms"] = row.switch_ms;
  if (!row.result.available) {
    json["available"] = false;
    json["why"] = row.result.why;
    return json;
  }
  json["saving"] = row.result.saving();
  json["slowdown"] = row.result.slowdown();
  json["joules"] = row.result.joules;
  json["seconds"] = row.result.seconds;
  json["base_joules"] = row.result.base_joules;
  json["base_seconds"] = row.result.base_seconds;
  json["steps"] = row.result.steps;
  json["plan_changes"] = row.result.changes;
  json["switches_per_step"] = row.result.switches_per_step;
  json["setting"] = row.result.what;
  return json;
}

nlohmann::ordered_json summary_json(const PolicySummary& summary) {
  nlohmann::ordered_json json;
  json["basis"] = "simulated over recorded tables";
  json["switch_ms"] = summary.switch_ms;
  json["policy"] = summary.policy;
  json["tables"] = summary.savings.size();
  json["unavailable"] = summary.unavailable;
  if (summary.savings.empty()) return json;
  json["saving_median"] = median(summary.savings);
  json["saving_least"] = *std::min_element(summary.savings.begin(), summary.savings.end());
  json["saving_most"] = *std::max_element(summary.savings.begin(), summary.savings.end());
  json["slowdown_most"] = *std::max_element(summary.slowdowns.begin(), summary.slowdowns.end());
  json["own_at_least"] = summary.own_at_least;
  return json;
}

std::string percent(double share, int decimals = 2) {
  std::ostringstream out;
  const double shown = std::fabs(share) < 1e-9 ? 0 : share;  // no "-0.00 %"
  out << std::fixed << std::setprecision(decimals) << 100 * shown << " %";
  return out.str();
}

void print_rows(const std::vector<ReplayRow>& rows) {
  for (size_t i = 0; i < rows.size(); ++i) {
    const ReplayRow& row = rows[i];
    if (i == 0 || row.table != rows[i - 1].table || row.switch_ms != rows[i - 1].switch_ms)
      std::cout << (i == 0 ? "" : "\n") << row.table->id << ", switching " << row.switch_ms << " ms\n";
    std::cout << "  " << std::left << std::setw(11) << row.result.policy << std::right;
    if (!row.result.available) {
      std::cout << "not available: " << row.result.why << "\n";
      continue;
    }
    std::cout << "saves " << std::setw(8) << percent(row.result.saving()) << ", slower " << std::setw(8)
              << percent(row.result.slowdown()) << "   " << row.result.what << "\n";
  }
}

void print_summaries(const std::vector<PolicySummary>& summaries) {
  std::cout << "\nswitching  policy      tables   saving: median    least     most   slower, at most   own "
               "saves as "
               "much\n";
  for (const PolicySummary& each : summaries) {
    std::cout << std::setw(6) << each.switch_ms << " ms  " << std::left << std::setw(11) << each.policy
              << std::right << std::setw(6) << each.savings.size();
    if (each.savings.empty()) {
      std::cout << "   not available in these tables\n";
      continue;
    }
    const auto [least, most] = std::minmax_element(each.savings.begin(), each.savings.end());
    std::cout << std::setw(18) << percent(median(each.savings)) << std::setw(9) << percent(*least)
              << std::setw(9) << percent(*most) << std::setw(18)
              << percent(*std::max_element(each.slowdowns.begin(), each.slowdowns.end())) << std::setw(12)
              << each.own_at_least << " of " << each.savings.size() << "\n";
  }
}

void run_replays(ReplayArguments arguments) {
  for (std::string& policy : arguments.policies) policy = clocks::canonical_policy(policy);
  std::vector<clocks::ClockTable> tables = clocks::read_clock_tables(arguments.table);
  const size_t all = tables.size();
  std::erase_if(tables, [&](const clocks::ClockTable& table) {
    return table.id.find(arguments.only) == std::string::npos ||
           (!arguments.gpu.empty() && table.gpu != arguments.gpu);
  });
  if (tables.empty())
    throw_user_error("none of the ", all, " tables of ", arguments.table, " has '", arguments.only,
                     "' in its name",
                     arguments.gpu.empty() ? "" : concat(" and is of the GPU '", arguments.gpu, "'"),
                     "; leave --only and --gpu out to see them");
  std::vector<ReplayRow> rows;
  for (const clocks::ClockTable& table : tables) {
    for (const double switch_ms : arguments.switch_ms) {
      const clocks::ReplayOptions options{.epsilon = arguments.epsilon,
                                          .switch_seconds = switch_ms / 1e3,
                                          .run_seconds = arguments.hours * 3600,
                                          .micro_batches = arguments.micro_batches};
      for (const std::string& policy : arguments.policies)
        rows.push_back({&table, switch_ms, clocks::replay(table, policy, options)});
    }
  }
  const std::vector<PolicySummary> summaries = summarize_rows(rows, arguments);
  if (arguments.json) {
    nlohmann::ordered_json json;
    json["summary"] = nlohmann::ordered_json::array();
    for (const PolicySummary& each : summaries) json["summary"].push_back(summary_json(each));
    if (!arguments.summary)
      for (const ReplayRow& row : rows) json["rows"].push_back(row_json(row, arguments));
    std::cout << json.dump(2) << "\n";
    return;
  }
  std::cout << arguments.table << ": " << tables.size() << " tables, at most "
            << percent(arguments.epsilon, 1) << " slower; simulated over recorded tables\n\n";
  if (!arguments.summary) print_rows(rows);
  print_summaries(summaries);
}

}  // namespace

void add_energy_simulate_command(CLI::App& energy) {
  CLI::App* command =
      energy.add_subcommand("simulate", "Replay clock policies over recorded tables of time and energy");
  auto a = std::make_shared<ReplayArguments>();
  command->add_option("--table", a->table, "CSV of recorded settings (docs/energy.md)")->required();
  command
      ->add_option("--policy", a->policies, "default, fixed, per-phase, slack, own, article (default: all)")
      ->delimiter(',');
  command->add_option("--epsilon", a->epsilon, "Allowed slowdown, as a share")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--switch-ms", a->switch_ms, "What a change of clock takes; several to compare")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 60000.0))
      ->capture_default_str();
  command->add_option("--hours", a->hours, "Length of the run at default clocks")
      ->check(CLI::Range(0.01, 10000.0))
      ->capture_default_str();
  command->add_option("--micro-batches", a->micro_batches, "Of a pipeline's step")
      ->check(CLI::Range(int64_t{1}, int64_t{256}))
      ->capture_default_str();
  command->add_option("--only", a->only, "Only tables with this in their name");
  command->add_option("--gpu", a->gpu, "Only tables of this GPU");
  command->add_flag("--summary", a->summary, "Only medians over the tables");
  command->add_flag("--json", a->json, "Print JSON");
  command->callback([a] { run_replays(*a); });
}

}  // namespace moebius::cli
