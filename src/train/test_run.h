// A tiny run for tests: a few kilobytes of text, a model of a few thousand parameters.
#pragma once

#include <string>

#include "base/file.h"
#include "base/philox.h"
#include "base/test_folder.h"
#include "train/trainer.h"

namespace moebius::train {

// Text of made-up words, with some order to learn.
inline std::string tiny_text(int64_t num_words) {
  static constexpr const char* kWords[] = {"sun", "moon", "tide", "salt", "reed", "owl", "fern", "\n"};
  const Philox random(7, "text");
  std::string text;
  size_t last = 0;
  for (int64_t i = 0; i < num_words; ++i) {
    // Mostly the word after the last one.
    last = random.uniform(static_cast<uint64_t>(i)) < 0.8f
               ? (last + 1) % 8
               : random.below(static_cast<uint64_t>(i) + 1000000, 8);
    text += kWords[last];
    text += ' ';
  }
  return text;
}

inline TrainOptions tiny_run(const TestFolder& folder, const std::string& name, int64_t steps) {
  const std::filesystem::path text = folder / "text.txt";
  if (!std::filesystem::exists(text)) write_file_atomic(text, tiny_text(3000));
  TrainOptions options;
  config::RunConfig& c = options.config;
  c.model.layers = 2;
  c.model.dim = 32;
  c.model.heads = 4;
  c.model.kv_heads = 2;
  c.model.qk_norm = "head";
  c.model.ffn_dim = 48;
  c.model.moe.experts = 4;
  c.model.moe.top_k = 2;
  c.model.moe.expert_dim = 24;
  c.model.moe.shared_experts = 1;
  c.model.moe.dense_layers = {0};
  c.model.moe.balance.bias_rate = 0.001;
  c.model.moe.balance.z_loss = 0.001;
  c.data.files = {text.string()};
  c.train.steps = steps;
  c.train.sequence = 32;
  c.train.batch = 4;
  c.train.micro_batch = 2;
  c.train.sample_tokens = 0;
  c.train.log_every = 1000;
  c.optimizer.lr = 3e-3;
  c.schedule.kind = "constant";
  c.checkpoint.keep = 10;
  options.run_dir = folder / name;
  return options;
}

}  // namespace moebius::train
