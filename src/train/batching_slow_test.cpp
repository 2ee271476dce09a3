// A training run with each policy: after the same number of targets in steps of the same mean size, the loss
// on held-out text is that of plain shuffling.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "data/corpus_builder.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

constexpr int64_t kSteps = 260;

// Documents of 8 to 120 characters; the longest are cut at 64.
std::string document_corpus(const TestFolder& folder, const std::string& name, int64_t first, int64_t size) {
  const std::string words = tiny_text(20000).substr(static_cast<size_t>(first), static_cast<size_t>(size));
  std::string text;
  for (size_t begin = 0; begin < words.size();) {
    const size_t length = 8 + (begin * 7919) % (begin % 5 == 0 ? 112 : 40);
    for (const char c : words.substr(begin, length)) text += c == '\n' ? ' ' : c;
    text += '\n';
    begin += length;
  }
  write_file_atomic(folder / (name + ".txt"), text);
  data::CorpusBuild build;
  build.files = {folder / (name + ".txt")};
  build.tokenizer = data::make_bytes_tokenizer();
  build.prefix = folder / name;
  build.split = data::DocumentSplit::line;
  data::build_corpus(build);
  return (folder / (name + ".idx")).string();
}

struct Outcome {
  double validation_loss = 0;
  double targets_per_step = 0;
};

Outcome run(const TestFolder& folder, const std::string& policy, int64_t seed, int64_t batch, int64_t steps) {
  TrainOptions options = tiny_run(folder, policy + std::to_string(seed) + "-" + std::to_string(steps), steps);
  options.config.data.files = {(folder / "train.idx").string()};
  options.config.data.validation_file = (folder / "valid.idx").string();
  options.config.data.batching = policy;
  options.config.data.window = 100;
  options.config.train.seed = seed;
  options.config.train.sequence = 64;
  options.config.train.batch = batch;
  options.config.checkpoint.at_end = false;
  const TrainResult result = train(options);
  const auto summary = nlohmann::json::parse(read_file(options.run_dir / "summary.json"));
  EXPECT_LE(summary["targets"], summary["tokens"]);
  return {*result.validation_loss, summary["targets"].get<double>() / static_cast<double>(steps)};
}

TEST(BatchingSlow, each_policy_learns_as_much_from_a_token_as_plain_shuffling) {
  const TestFolder folder;
  document_corpus(folder, "train", 0, 60000);
  document_corpus(folder, "valid", 60000, 8000);
  const auto mean_of = [&](const std::string& policy, int64_t batch) {
    double loss = 0, targets = 0;
    for (int64_t seed = 1; seed <= 3; ++seed) {
      const Outcome outcome = run(folder, policy, seed, batch, kSteps);
      loss += outcome.validation_loss / 3;
      targets += outcome.targets_per_step / 3;
    }
    return Outcome{loss, targets};
  };
  const Outcome plain = mean_of("window", 4);
  EXPECT_LT(plain.validation_loss, 1.6) << "it has learnt the order of the words";
  for (const std::string policy : {"pad", "three-buckets", "pack", "balanced"}) {
    // As many rows as give steps of the same mean size.
    const double share = run(folder, policy, 9, 4, 10).targets_per_step / plain.targets_per_step;
    const int64_t batch = 2 * std::max<int64_t>(1, std::llround(4 / share / 2));
    const Outcome outcome = mean_of(policy, batch);
    EXPECT_NEAR(outcome.targets_per_step / plain.targets_per_step, 1, 0.2) << policy;
    EXPECT_NEAR(outcome.validation_loss, plain.validation_loss, 0.08) << policy;
    RecordProperty(policy + "_loss", std::to_string(outcome.validation_loss));
  }
}

}  // namespace
}  // namespace moebius::train
