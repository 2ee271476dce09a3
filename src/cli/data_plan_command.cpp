#include "cli/data_plan_command.h"

#include <CLI/CLI.hpp>
#include <iomanip>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/units.h"
#include "cli/length_plot.h"
#include "config/batching.h"
#include "config/load.h"
#include "data/length_list.h"
#include "data/permutation.h"
#include "data/planner/plan_report.h"

namespace moebius::cli {
namespace {

using data::PlanReport;
using data::PlanShape;

constexpr int64_t kMaxPieces = int64_t{1} << 28;
constexpr int64_t kMaxRowsOfStep = int64_t{1} << 20;

struct DataPlanArguments {
  std::string corpus, lengths, policy = "pack", model, out, svg;
  PlanShape shape{.rows = 0};
  int64_t hidden = 4096;
  std::optional<uint64_t> shuffle;
  bool no_split = false, json = false;
};

struct Documents {
  std::string name;
  std::vector<int64_t> lengths;
};

Documents open_documents(const DataPlanArguments& arguments) {
  if (arguments.corpus.empty() == arguments.lengths.empty()) {
    throw_user_error("name either a corpus or a list of lengths (--lengths FILE)");
  }
  Documents documents;
  if (arguments.lengths.empty()) {
    const auto corpus = data::Corpus::open(arguments.corpus);
    documents = {corpus->prefix().string(), data::lengths_of(*corpus)};
  } else {
    documents = {arguments.lengths, data::read_lengths(arguments.lengths)};
  }
  const int64_t context = arguments.shape.context;
  int64_t num_pieces = 0;
  for (const int64_t length : documents.lengths) {
    num_pieces += (length + context - 1) / context;
    if (num_pieces > kMaxPieces) {
      throw_user_error(documents.name, ": a context of ", context, " cuts its documents into more than ",
                       kMaxPieces, " pieces; raise --context, or give a part of the list");
    }
  }
  if (num_pieces == 0) {
    throw_user_error(documents.name, ": none of its ", documents.lengths.size(),
                     " documents has a token, so there is nothing to plan");
  }
  if (arguments.shuffle) {
    const data::Permutation order(static_cast<int64_t>(documents.lengths.size()), *arguments.shuffle);
    std::vector<int64_t> shuffled;
    for (int64_t i = 0; i < order.size(); ++i) shuffled.push_back(documents.lengths[order(i)]);
    documents.lengths = std::move(shuffled);
  }
  return documents;
}

data::CostModel cost_of(const DataPlanArguments& arguments) {
  if (arguments.model.empty()) return data::cost_of_width(arguments.hidden);
  return data::cost_of_model(config::load_run_config(arguments.model).model);
}

// One row of the context for policies that pack; four for those that pad, as a padded micro-batch of one row
// has nothing to pad to.
PlanShape shape_for(const DataPlanArguments& arguments, const config::Batching& batching) {
  PlanShape shape = arguments.shape;
  if (shape.rows == 0) {
    const bool packs =
        batching.kind == config::BatchingKind::pack || batching.kind == config::BatchingKind::balanced;
    shape.rows = packs ? 1 : 4;
  }
  if (shape.micro_batches_per_step() > kMaxRowsOfStep) {
    throw_user_error("--micro-batches ", shape.micro_batches, " on --ranks ", shape.ranks, " are more than ",
                     kMaxRowsOfStep, " in a step; lower one of them");
  }
  return shape;
}

config::Batching policy_of(const std::string& policy) {
  const config::Batching batching = config::parse_batching(policy, "--policy");
  if (batching.kind == config::BatchingKind::window) {
    throw_user_error(
        "--policy is 'window', which joins all text and plans no documents; use pad, "
        "three-buckets, buckets:N, edges:A,B,..., pack or balanced");
  }
  return batching;
}

std::unique_ptr<data::Planner> planner_for(const DataPlanArguments& arguments, const std::string& policy,
                                           const Documents& documents, PlanShape* shape) {
  const config::Batching batching = policy_of(policy);
  *shape = shape_for(arguments, batching);
  auto stream = std::make_unique<data::ListStream>(documents.lengths, shape->context, !arguments.no_split,
                                                   documents.name);
  return data::make_planner(batching, std::move(stream), *shape, cost_of(arguments));
}

int64_t count_cut(const Documents& documents, int64_t context) {
  int64_t count = 0;
  for (const int64_t length : documents.lengths) count += length > context;
  return count;
}

PlanReport report_on(const DataPlanArguments& arguments, const std::string& policy,
                     const Documents& documents, PlanShape* shape) {
  const auto planner = planner_for(arguments, policy, documents, shape);
  PlanReport report = data::plan_all(*planner, *shape);
  report.documents_cut = count_cut(documents, shape->context);
  return report;
}

nlohmann::ordered_json to_json(const std::string& policy, const PlanShape& shape, const PlanReport& report) {
  nlohmann::ordered_json json;
  json["policy"] = policy;
  json["context"] = shape.context;
  json["window"] = shape.window;
  json["micro_batches"] = shape.micro_batches;
  json["ranks"] = shape.ranks;
  json["rows"] = shape.rows;
  json["documents"] = report.documents;
  json["documents_cut"] = report.documents_cut;
  json["pieces"] = report.pieces;
  json["tokens"] = report.tokens;
  json["padding_tokens"] = report.padding;
  json["token_efficiency"] = report.token_efficiency();
  json["steps"] = report.steps;
  json["largest_micro_batch_tokens"] = report.largest_micro_batch;
  json["imbalance_tokens"] = report.max_over_mean_tokens;
  json["imbalance_cost"] = report.max_over_mean_cost;
  json["imbalance_cost_worst_step"] = report.worst_cost;
  json["imbalance_cost_ranks"] = report.max_over_mean_rank_cost;
  json["max_delay_steps"] = report.max_delay_steps;
  json["microseconds_per_sample"] = report.microseconds_per_sample();
  return json;
}

// The plan itself, one step a line: pieces as [document, first token, tokens].
void write_plan(const DataPlanArguments& arguments, const Documents& documents) {
  PlanShape shape;
  const auto planner = planner_for(arguments, arguments.policy, documents, &shape);
  AtomicFile file(arguments.out);
  data::StepPlan plan;
  while (planner->next(plan)) {
    nlohmann::ordered_json line;
    line["step"] = plan.step;
    auto& list = line["micro_batches"] = nlohmann::ordered_json::array();
    for (const data::MicroBatchPlan& each : plan.micro_batches) {
      nlohmann::ordered_json entry;
      auto& pieces = entry["pieces"] = nlohmann::ordered_json::array();
      for (const data::Piece& piece : each.pieces)
        pieces.push_back({piece.document, piece.begin, piece.length});
      entry["row_length"] = each.row_length;
      entry["padding"] = each.padding;
      list.push_back(std::move(entry));
    }
    file.write(line.dump() + "\n");
  }
  file.commit();
}

void run_plan(const DataPlanArguments& arguments) {
  const Documents documents = open_documents(arguments);
  PlanShape shape;
  const PlanReport report = report_on(arguments, arguments.policy, documents, &shape);
  if (!arguments.out.empty()) write_plan(arguments, documents);
  if (arguments.json) {
    std::cout << to_json(arguments.policy, shape, report).dump(2) << "\n";
    return;
  }
  std::cout << "policy             " << arguments.policy << ", context " << shape.context << ", window "
            << shape.window << ", " << shape.micro_batches << " micro-batches of " << shape.capacity()
            << " tokens on " << shape.ranks << (shape.ranks == 1 ? " rank\n" : " ranks\n")
            << "documents          " << report.documents << ", " << report.documents_cut
            << " of them cut because they are longer than the context\n"
            << "tokens             " << report.tokens << " in " << report.steps << " steps, "
            << report.padding << " of padding beside\n"
            << "token efficiency   " << format_fixed(report.token_efficiency(), 4) << "\n"
            << "imbalance, tokens  " << format_fixed(report.max_over_mean_tokens, 4) << " (max/mean of the "
            << "micro-batches of a step; the largest has " << report.largest_micro_batch << ")\n"
            << "imbalance, cost    " << format_fixed(report.max_over_mean_cost, 4) << ", in the worst step "
            << format_fixed(report.worst_cost, 4) << "\n"
            << "longest delay      " << report.max_delay_steps << " steps\n"
            << "planning           " << format_fixed(report.microseconds_per_sample(), 3)
            << " us per document\n";
}

std::string percent(int64_t part, int64_t whole) {
  return whole == 0 ? "-" : format_fixed(100 * static_cast<double>(part) / static_cast<double>(whole), 1);
}

void print_lengths(const data::LengthSummary& summary) {
  const int64_t documents = summary.documents - summary.empty_documents;
  std::cout << summary.documents << " documents, " << summary.empty_documents << " of them empty, "
            << summary.tokens << " tokens\n"
            << "shortest " << summary.shortest << ", median " << summary.median << ", 90 % " << summary.p90
            << ", 99 % " << summary.p99 << ", longest " << summary.longest << "\n\n"
            << std::setw(22) << "tokens" << std::setw(14) << "documents %" << std::setw(12) << "tokens %"
            << "\n";
  for (const data::LengthClass& each : summary.classes) {
    std::cout << std::setw(22) << concat(each.from, " to ", each.to - 1) << std::setw(14)
              << percent(each.documents, documents) << std::setw(12) << percent(each.tokens, summary.tokens)
              << "\n";
  }
}

void run_stats(DataPlanArguments arguments) {
  // A corpus by any of its names, else a list.
  if (!std::filesystem::exists(data::idx_path(data::corpus_prefix(arguments.corpus)))) {
    std::swap(arguments.lengths, arguments.corpus);
  }
  const Documents documents = open_documents(arguments);
  const data::LengthSummary summary = data::summarize(documents.lengths);
  std::vector<PolicyResult> results;
  nlohmann::ordered_json json;
  auto& policies = json["policies"] = nlohmann::ordered_json::array();
  if (!arguments.json) {
    print_lengths(summary);
    std::cout << "\n"
              << std::left << std::setw(16) << "policy" << std::right << std::setw(12) << "efficiency"
              << std::setw(14) << "tokens" << std::setw(12) << "cost" << std::setw(9) << "delay"
              << std::setw(9) << "steps" << std::setw(11) << "us/doc\n"
              << std::setw(42) << "max/mean" << std::setw(12) << "max/mean" << std::setw(9) << "steps"
              << "\n";
  }
  for (const char* policy : {"pad", "three-buckets", "buckets:8", "buckets:32", "pack", "balanced"}) {
    PlanShape shape;
    const PlanReport report = report_on(arguments, policy, documents, &shape);
    results.push_back({policy, report.token_efficiency(), report.max_over_mean_cost});
    policies.push_back(to_json(policy, shape, report));
    if (arguments.json) continue;
    std::cout << std::left << std::setw(16) << policy << std::right << std::setw(12)
              << format_fixed(report.token_efficiency(), 4) << std::setw(14)
              << format_fixed(report.max_over_mean_tokens, 3) << std::setw(12)
              << format_fixed(report.max_over_mean_cost, 3) << std::setw(9) << report.max_delay_steps
              << std::setw(9) << report.steps << std::setw(10)
              << format_fixed(report.microseconds_per_sample(), 3) << "\n";
  }
  if (!arguments.svg.empty()) {
    write_file_atomic(arguments.svg,
                      plot_lengths(concat(std::filesystem::path(documents.name).filename().string(),
                                          ", context ", arguments.shape.context),
                                   summary, results));
  }
  if (!arguments.json) return;
  json["documents"] = summary.documents;
  json["empty_documents"] = summary.empty_documents;
  json["tokens"] = summary.tokens;
  json["shortest"] = summary.shortest;
  json["median"] = summary.median;
  json["p90"] = summary.p90;
  json["p99"] = summary.p99;
  json["longest"] = summary.longest;
  auto& classes = json["classes"] = nlohmann::ordered_json::array();
  for (const data::LengthClass& each : summary.classes) {
    classes.push_back(
        {{"from", each.from}, {"to", each.to}, {"documents", each.documents}, {"tokens", each.tokens}});
  }
  std::cout << json.dump(2) << "\n";
}

void add_shape_options(CLI::App& command, DataPlanArguments& arguments) {
  PlanShape& shape = arguments.shape;
  const auto add = [&](const char* name, int64_t& value, int64_t least, int64_t most, const char* meaning) {
    command.add_option(name, value, meaning)->capture_default_str()->check(CLI::Range(least, most));
  };
  add("--context", shape.context, 1, 1 << 24, "Longest piece of a document, in tokens");
  add("--window", shape.window, 1, 1 << 24, "Documents looked at ahead");
  add("--micro-batches", shape.micro_batches, 1, 1 << 20, "Micro-batches of a step on each rank");
  add("--ranks", shape.ranks, 1, 1 << 20, "Ranks that share a step");
  add("--rows", shape.rows, 0, 1 << 20,
      "Room of a micro-batch, in rows of --context tokens; 0: 1 for pack and balanced, else 4");
  add("--max-delay", shape.max_delay, 0, 1 << 20, "Steps that balanced may hold back a long document");
  add("--hidden", arguments.hidden, 1, 1 << 20, "Width of the model whose cost is counted");
  command.add_option("--model", arguments.model, "Count the cost of the model of this config file instead");
  command.add_option("--shuffle", arguments.shuffle, "Shuffle the documents with this seed first");
  command.add_flag("--no-split", arguments.no_split, "Refuse documents longer than the context");
  command.add_flag("--json", arguments.json, "Print JSON");
}

}  // namespace

void add_data_plan_commands(CLI::App& data) {
  auto plan = std::make_shared<DataPlanArguments>();
  CLI::App* command = data.add_subcommand("plan", "Plan batches of documents and say how good they are");
  command->add_option("corpus", plan->corpus, "Prefix, .idx or .bin of a corpus");
  command->add_option("--lengths", plan->lengths, "Or a list of document lengths, one a line, plain or gzip");
  command
      ->add_option("--policy", plan->policy, "pad, three-buckets, buckets:N, edges:A,B,..., pack or balanced")
      ->capture_default_str();
  command->add_option("--out", plan->out, "Write the plan itself to this file, one step a line (JSON)");
  add_shape_options(*command, *plan);
  command->callback([plan] { run_plan(*plan); });

  auto stats = std::make_shared<DataPlanArguments>();
  command = data.add_subcommand("stats", "Document lengths, and what each batching policy makes of them");
  command->add_option("source", stats->corpus, "A corpus, or a list of document lengths")->required();
  command->add_option("--svg", stats->svg, "Draw both into this file");
  add_shape_options(*command, *stats);
  command->callback([stats] { run_stats(*stats); });
}

}  // namespace moebius::cli
