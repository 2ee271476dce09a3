#include "cli/data_encode_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/units.h"
#include "cli/number_checks.h"
#include "data/text.h"
#include "data/tokenizer.h"

namespace moebius::cli {
namespace {

struct Arguments {
  std::string file, tokenizer = "bytes";
  bool ids = false, tokens = false, json = false, with_template = false;
  int repeats = 0;
};

// MB (1e6 bytes) of text per second on one thread, the median of `repeats` passes over the whole text.
double median_rate(const data::Tokenizer& tokenizer, std::string_view text, int repeats) {
  std::vector<double> seconds;
  std::vector<int32_t> ids;
  for (int i = 0; i < repeats; ++i) {
    ids.clear();
    const double begin = steady_seconds();
    tokenizer.encode(text, ids);
    seconds.push_back(steady_seconds() - begin);
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return static_cast<double>(text.size()) / seconds[static_cast<size_t>(repeats / 2)] * 1e-6;
}

void print_ids(const std::vector<int32_t>& ids) {
  for (size_t i = 0; i < ids.size(); ++i) std::cout << (i > 0 ? " " : "") << ids[i];
  std::cout << "\n";
}

// One token a line: its id, and its text as a JSON string.
void print_tokens(const data::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) {
    const std::string_view bytes = tokenizer.token_bytes(id);
    std::cout << id << "\t"
              << nlohmann::json(bytes).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  }
}

void run(const Arguments& arguments) {
  const auto tokenizer = data::open_tokenizer(arguments.tokenizer);
  const std::string text = read_file(arguments.file);
  if (!text.empty()) data::check_text(text, arguments.file);
  const auto special =
      arguments.with_template ? data::Tokenizer::Special::kTemplate : data::Tokenizer::Special::kNone;
  const double begin = steady_seconds();
  const std::vector<int32_t> ids = tokenizer->encode(text, special);
  const double first_rate = static_cast<double>(text.size()) / (steady_seconds() - begin) * 1e-6;
  if (arguments.ids) return print_ids(ids);
  if (arguments.tokens) return print_tokens(*tokenizer, ids);
  const double rate = arguments.repeats > 0 ? median_rate(*tokenizer, text, arguments.repeats) : 0;
  const double bytes_per_token =
      ids.empty() ? 0 : static_cast<double>(text.size()) / static_cast<double>(ids.size());
  if (arguments.json) {
    nlohmann::ordered_json json{{"file", arguments.file},
                                {"tokenizer", arguments.tokenizer},
                                {"fingerprint", tokenizer->fingerprint()},
                                {"vocab_size", tokenizer->vocab_size()},
                                {"bytes", text.size()},
                                {"tokens", ids.size()},
                                {"bytes_per_token", bytes_per_token}};
    if (arguments.repeats > 0) {
      json["megabytes_per_second"] = rate;
      json["megabytes_per_second_first"] = first_rate;  // with no piece remembered yet
    }
    std::cout << json.dump(2) << "\n";
    return;
  }
  std::cout << arguments.file << ": " << format_bytes(static_cast<int64_t>(text.size())) << ", " << ids.size()
            << " tokens, " << bytes_per_token << " bytes per token\n";
  if (arguments.repeats > 0)
    std::cout << "one thread: " << first_rate << " MB/s at first, then " << rate << " MB/s (median of "
              << arguments.repeats << ")\n";
}

}  // namespace

void add_data_encode_command(CLI::App& parent) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = parent.add_subcommand("encode", "Say into which tokens a text is cut, and how fast");
  command->add_option("file", arguments->file, "Text file (UTF-8)")->required();
  command
      ->add_option("--tokenizer", arguments->tokenizer, "'bytes', a SentencePiece .model or a tokenizer.json")
      ->capture_default_str();
  CLI::Option* ids = command->add_flag("--ids", arguments->ids, "Print the ids, on one line");
  command->add_flag("--tokens", arguments->tokens, "Print each token on a line: id and text")->excludes(ids);
  command->add_flag("--template", arguments->with_template,
                    "With what the tokenizer's own template puts around a text");
  command->add_option("--repeats", arguments->repeats, "Also time so many passes over the text")
      ->check(above_zero());
  command->add_flag("--json", arguments->json, "Print JSON");
  command->callback([arguments] { run(*arguments); });
}

}  // namespace moebius::cli
