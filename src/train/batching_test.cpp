// Training on batches that a planner made (data/planner): gradients, resuming, every policy.
#include <gtest/gtest.h>

#include <vector>

#include "base/error.h"
#include "ckpt/folder.h"
#include "data/corpus_builder.h"
#include "data/prepare.h"
#include "train/device_batch.h"
#include "train/model_files.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

const char* const kPolicies[] = {"pad", "three-buckets", "buckets:3", "edges:8,20", "pack", "balanced"};

// A corpus of lines of 2 to 100 words, most of them shorter than the sequence.
std::string line_corpus(const TestFolder& folder) {
  std::string text;
  const std::string words = tiny_text(3000);
  for (size_t begin = 0; begin < words.size();) {
    const size_t length = 3 + (begin * 7919) % (begin % 5 == 0 ? 97 : 23);
    for (const char c : words.substr(begin, length)) text += c == '\n' ? ' ' : c;
    text += '\n';
    begin += length;
  }
  write_file_atomic(folder / "lines.txt", text);
  data::CorpusBuild build;
  build.files = {folder / "lines.txt"};
  build.tokenizer = data::make_bytes_tokenizer();
  build.prefix = folder / "lines";
  build.split = data::DocumentSplit::line;
  data::build_corpus(build);
  return (folder / "lines.idx").string();
}

TrainOptions batched_run(const TestFolder& folder, const std::string& policy, const std::string& name,
                         int64_t steps) {
  TrainOptions options = tiny_run(folder, name, steps);
  options.config.data.files = {(folder / "lines.idx").string()};
  options.config.data.batching = policy;
  options.config.data.window = 40;
  return options;
}

// Gradients of the sum of the losses of batches.
std::vector<at::Tensor> gradients(nn::Decoder& decoder, std::vector<data::Batch>& batches) {
  for (nn::Param& param : decoder.params().params()) param.value.mutable_grad() = at::Tensor();
  for (data::Batch& batch : batches) {
    const nn::TokenBatch tokens = to_device(batch, decoder.device());
    decoder.loss(decoder.forward(tokens, {}).hidden_TD, tokens.targets_T, 1.0).backward();
  }
  std::vector<at::Tensor> result;
  for (nn::Param& param : decoder.params().params()) {
    if (param.value.grad().defined()) result.push_back(param.value.grad().clone());
  }
  return result;
}

// Each document of a batch as a batch of its own; padding is left out.
std::vector<data::Batch> one_by_one(const data::Batch& batch) {
  std::vector<data::Batch> documents;
  for (size_t d = 0; d + 1 < batch.cu_seqlens.size(); ++d) {
    const int64_t begin = batch.cu_seqlens[d], end = batch.cu_seqlens[d + 1];
    std::vector<int32_t> text(batch.tokens.begin() + begin, batch.tokens.begin() + end);
    if (text.size() > 1 && batch.targets[begin] == data::kNoTarget) continue;
    if (batch.targets[end - 1] != data::kNoTarget)
      text.push_back(static_cast<int32_t>(batch.targets[end - 1]));
    data::Batch alone;
    alone.clear();
    alone.add_sequence(text, end - begin, {});
    documents.push_back(std::move(alone));
  }
  return documents;
}

TEST(Batching, the_gradient_of_a_batch_is_the_sum_of_those_of_its_documents) {
  const TestFolder folder;
  line_corpus(folder);
  for (const std::string policy : kPolicies) {
    TrainOptions options = batched_run(folder, policy, "run", 1);
    options.config.model.vocab = 256;
    options.config.model.moe.balance = {.aux_loss = 0};
    const data::Sources sources = data::open_sources(options.config.data, folder / "cache");
    const auto batches = data::make_training_batches(
        options.config.data, sources,
        {.seed = 1, .sequence = 32, .batch = 4, .micro_batch = 2, .vocab_size = 256});
    const auto decoder = make_model(options.config, at::kCPU);
    std::vector<data::Batch> whole(1);
    batches->fill(3, 1, whole[0]);
    std::vector<data::Batch> parts = one_by_one(whole[0]);
    ASSERT_GT(parts.size(), 1u) << policy;
    int64_t num_targets = 0;
    for (const data::Batch& part : parts) num_targets += part.num_targets;
    ASSERT_EQ(num_targets, whole[0].num_targets);
    const auto together = gradients(*decoder, whole), apart = gradients(*decoder, parts);
    ASSERT_EQ(together.size(), apart.size());
    for (size_t i = 0; i < apart.size(); ++i) {
      const double size = apart[i].norm().item<double>();
      EXPECT_LT((together[i] - apart[i]).norm().item<double>(), 2e-6 * size + 1e-9) << policy << " " << i;
    }
  }
}

TEST(Batching, every_policy_learns_and_resumes_bit_for_bit) {
  const TestFolder folder;
  line_corpus(folder);
  for (const std::string policy : kPolicies) {
    TrainOptions straight = batched_run(folder, policy, policy + "-straight", 12),
                 parts = batched_run(folder, policy, policy + "-parts", 5);
    const TrainResult result = train(straight);
    EXPECT_LT(result.train_loss, 5.4) << policy;
    train(parts);
    parts.config.train.steps = 12;
    parts.mode = RunMode::resume;
    EXPECT_EQ(train(parts).train_loss, result.train_loss) << policy;
    const auto name = ckpt::step_dir({}, 12);
    for (const auto& entry : std::filesystem::directory_iterator(straight.run_dir / name)) {
      const auto other = parts.run_dir / name / entry.path().filename();
      EXPECT_TRUE(read_file(entry.path()) == read_file(other)) << policy << " " << other;
    }
  }
}

TEST(Batching, documents_longer_than_the_sequence_are_refused_when_splitting_is_off) {
  const TestFolder folder;
  line_corpus(folder);
  TrainOptions options = batched_run(folder, "pack", "run", 1);
  options.config.data.split_documents = false;
  const std::string message = message_of<UserError>([&] { train(options); });
  EXPECT_NE(message.find("more than the context of 32, and splitting is off"), std::string::npos) << message;
  EXPECT_FALSE(std::filesystem::exists(options.run_dir));
}

}  // namespace
}  // namespace moebius::train
