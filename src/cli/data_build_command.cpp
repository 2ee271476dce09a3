#include "cli/data_build_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/interrupt.h"
#include "base/log.h"
#include "base/units.h"
#include "cli/number_checks.h"
#include "data/build_progress.h"
#include "data/corpus_builder.h"
#include "data/decode/cycle_model.h"

namespace moebius::cli {
namespace {

using data::BuildCounters;
using data::BuildReport;

constexpr double kLongSeconds = 2;  // a build from which on stages are of interest

struct BuildArguments {
  std::vector<std::string> files;
  std::string tokenizer = "bytes", out, duplicates = "keep", on_error = "stop", report;
  data::CorpusBuild build;
  int64_t commit_mib = 64;
  bool per_line = false, overwrite = false;
};

void print_stage(const char* name, const std::string& what, double seconds, int64_t bytes) {
  char line[200];
  std::snprintf(line, sizeof line, "%-11s %-66s %7.2f s", name, what.c_str(), seconds);
  std::cout << line;
  if (seconds > 0.005)
    std::cout << "  "
              << format_bytes(static_cast<int64_t>(static_cast<double>(bytes) / seconds)) + "/s per thread";
  std::cout << "\n";
}

void print_stages(const BuildReport& report) {
  const BuildCounters& c = report.counters;
  const int64_t bytes = c.bytes;
  print_stage("read",
              concat(c.files, " files, ", format_bytes(c.input_bytes), ", decompressed ", format_bytes(bytes),
                     ", ", c.bad_files, " damaged"),
              report.read_seconds, bytes);
  print_stage("parse", concat(c.records, " records, ", c.bad_records, " bad"), report.parse_seconds, bytes);
  print_stage("filter",
              concat(c.empty, " empty, ", c.too_short, " too short, ", c.too_long, " too long, ",
                     c.unprintable, " unprintable"),
              0, 0);
  print_stage("deduplicate", concat(c.exact_duplicates, " the same, ", c.near_duplicates, " nearly"),
              report.deduplicate_seconds, bytes);
  print_stage("tokenize",
              concat(c.documents, " documents, ", format_bytes(c.text_bytes), ", ", c.tokens, " tokens"),
              report.tokenize_seconds, c.text_bytes);
  print_stage("write", "", report.write_seconds, c.text_bytes);
  std::cout << "filter's and hashing's time is in parse; " << format_duration(report.seconds) << " in all\n";
}

// What an FPGA in the place of the OpenCL device is predicted to do with this text.
nlohmann::ordered_json fpga_json(const BuildCounters& counters) {
  const data::FpgaAssumptions assumed;
  const data::FpgaPrediction predicted =
      data::predict_fpga(assumed, std::max<int64_t>(counters.bytes, 1), counters.text_bytes, 1 << 20);
  return {{"what", "predicted by a cycle model, not measured"},
          {"assumed_clock_mhz", assumed.clock_mhz},
          {"assumed_cycles_per_byte", assumed.cycles_per_byte},
          {"assumed_cycles_per_batch", assumed.cycles_per_batch},
          {"assumed_engines", assumed.engines},
          {"assumed_pcie_gb_per_second", assumed.pcie_gb_per_second},
          {"assumed_board_watts", assumed.board_watts},
          {"predicted_engine_gb_per_second", predicted.engine_gb_per_second},
          {"predicted_gb_per_second", predicted.gb_per_second},
          {"predicted_joules_per_gb", predicted.joules_per_gb}};
}

nlohmann::ordered_json report_json(BuildReport report, bool is_opencl) {
  nlohmann::ordered_json json;
  for (const auto& [name, value] : report.counters.fields()) json["counters"][name] = *value;
  json["problems"] = report.problems;
  json["resumed_bytes"] = report.resumed_bytes;
  json["seconds"] = report.seconds;
  json["busy_seconds"] = {{"read", report.read_seconds},
                          {"parse", report.parse_seconds},
                          {"deduplicate", report.deduplicate_seconds},
                          {"tokenize", report.tokenize_seconds},
                          {"write", report.write_seconds}};
  if (is_opencl) json["fpga"] = fpga_json(report.counters);
  return json;
}

data::Duplicates duplicates_of(const std::string& word) {
  if (word == "exact") return data::Duplicates::exact;
  return word == "near" ? data::Duplicates::near : data::Duplicates::keep;
}

std::string kept(const data::CorpusBuild& build) {
  return concat("what is done is kept in ", data::work_folder(build.prefix).string(),
                ", the same command goes on from there");
}

void build(data::CorpusBuild& build, const BuildArguments& arguments) {
  const auto progress = data::show_build_progress();
  const std::string name =
      arguments.files.size() == 1 ? arguments.files[0] : concat(arguments.files.size(), " files");
  build.progress = [&](int64_t done, int64_t total) { progress(name, done, total); };
  const InterruptGuard interrupts;
  build.is_interrupted = interrupt_requested;
  BuildReport report;
  try {
    report = data::build_corpus(build);
  } catch (const data::BuildInterrupted&) {
    throw std::runtime_error(concat("interrupted; ", kept(build)));
  } catch (const UserError&) {
    if (std::filesystem::exists(data::work_folder(build.prefix))) log_info(kept(build));
    throw;
  }
  if (report.resumed_bytes > 0)
    log_info("went on after ", format_bytes(report.resumed_bytes), " that an earlier build had done");
  if (!arguments.report.empty())
    write_file_atomic(arguments.report,
                      report_json(report, build.decode_device == "opencl")
                              .dump(2, ' ', false, nlohmann::json::error_handler_t::replace) +
                          "\n");
  const BuildCounters& counters = report.counters;
  const int64_t left_out = counters.bad_records + counters.bad_files;
  if (left_out > 0) log_warn(left_out, " records and files were left out because they could not be read");
  if (counters.documents != counters.records || report.seconds > kLongSeconds) print_stages(report);
}

void run_build(BuildArguments& arguments) {
  data::CorpusBuild& plan = arguments.build;
  plan.files = {arguments.files.begin(), arguments.files.end()};
  plan.tokenizer = data::open_tokenizer(arguments.tokenizer);
  plan.prefix = data::corpus_prefix(arguments.out);
  plan.split = arguments.per_line ? data::DocumentSplit::line : data::DocumentSplit::file;
  plan.duplicates = duplicates_of(arguments.duplicates);
  plan.skips_errors = arguments.on_error == "skip";
  plan.keeps_partial = true;
  plan.commit_bytes = arguments.commit_mib << 20;
  if (data::corpus_is_current(plan)) {
    std::cout << "up to date: ";
  } else {
    if (!arguments.overwrite && std::filesystem::exists(data::idx_path(plan.prefix))) {
      throw_user_error(
          data::idx_path(plan.prefix).string(),
          " exists already and was made from other text or with another tokenizer; give another --out, "
          "or --overwrite");
    }
    build(plan, arguments);
  }
  const auto corpus = data::Corpus::open(plan.prefix);
  std::cout << corpus->prefix().string() << ": " << format_count(static_cast<double>(corpus->num_tokens()))
            << " tokens, " << corpus->num_documents()
            << (corpus->num_documents() == 1 ? " document\n" : " documents\n");
}

}  // namespace

void add_data_build_command(CLI::App& parent) {
  auto arguments = std::make_shared<BuildArguments>();
  data::CorpusBuild& build = arguments->build;
  CLI::App* command = parent.add_subcommand(
      "build",
      "Clean and tokenize text files into one corpus (.bin, .idx, .json); goes on where it was stopped");
  command
      ->add_option("files", arguments->files,
                   "Text (UTF-8; each file is one document) and JSON lines (.jsonl, .ndjson, .json), plain, "
                   ".gz or .zst; Parquet (.parquet)")
      ->required();
  command
      ->add_option("--tokenizer", arguments->tokenizer, "'bytes', a SentencePiece .model or a tokenizer.json")
      ->capture_default_str();
  command->add_option("--out", arguments->out, "Prefix of the corpus")->required();
  command->add_flag("--per-line", arguments->per_line, "Each non-empty line of a text file is a document");
  command
      ->add_option(
          "--text-field", build.text_field,
          "Where a JSON line has its text: a name, or a pointer such as /data/text; a Parquet file's column")
      ->capture_default_str();
  command->add_option("--min-chars", build.filter.min_chars, "Drop documents with fewer characters")
      ->check(zero_or_more());
  command->add_option("--max-chars", build.filter.max_chars, "Drop documents with more characters; 0: keep")
      ->check(zero_or_more());
  command
      ->add_option("--min-printable", build.filter.min_printable,
                   "Drop documents with a smaller share of printable characters")
      ->check(CLI::Range(0.0, 1.0));
  command
      ->add_option("--duplicates", arguments->duplicates,
                   "keep; exact: drop documents that came before; near: also those that are nearly the same")
      ->capture_default_str()
      ->check(CLI::IsMember({"keep", "exact", "near"}));
  command
      ->add_option("--near-threshold", build.near_threshold,
                   "Share of common runs of five words from which on documents are nearly the same")
      ->capture_default_str()
      ->check(CLI::Range(0.1, 1.0));
  command
      ->add_option("--on-error", arguments->on_error,
                   "What cannot be read (damaged data, JSON, UTF-8): stop, or skip and count it")
      ->capture_default_str()
      ->check(CLI::IsMember({"stop", "skip"}));
  command
      ->add_option(
          "--decode-device", build.decode_device,
          "What reads JSON lines: cpu, or opencl (the kernel for an FPGA, on the first OpenCL device)")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "opencl"}));
  command->add_option("--threads", build.num_threads, "Threads that parse and tokenize (default: all cores)")
      ->check(above_zero());
  command
      ->add_option("--commit-mib", arguments->commit_mib,
                   "MiB of tokens between two points from which a build that was stopped goes on")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command->add_option("--report", arguments->report, "Write counters and times of the stages as JSON");
  command->add_flag("--overwrite", arguments->overwrite, "Replace another corpus under this prefix");
  command->callback([arguments] { run_build(*arguments); });
}

}  // namespace moebius::cli
