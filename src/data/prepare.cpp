#include "data/prepare.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "base/hash.h"
#include "config/batching.h"
#include "data/corpus_builder.h"
#include "data/planned_batches.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

// The place of a text file's corpus in the cache: readable, and different for other files and tokenizers.
fs::path cached_prefix(const fs::path& file, const Tokenizer& tokenizer, const fs::path& cache_dir) {
  const std::string key = fs::absolute(file).lexically_normal().string() + "\n" + tokenizer.fingerprint();
  return cache_dir / (file.stem().string() + "-" + hash_hex(hash64(key)));
}

void check_tokenizer(const Corpus& corpus, const Tokenizer& tokenizer) {
  if (!corpus.info()) return;  // made by another program: ids are checked while reading
  const CorpusInfo& info = *corpus.info();
  if (info.tokenizer_fingerprint != tokenizer.fingerprint()) {
    throw_user_error("corpus ", corpus.prefix().string(), ": tokenizer_fingerprint is ",
                     info.tokenizer_fingerprint, " (", info.tokenizer, "), expected ",
                     tokenizer.fingerprint(), " (data.tokenizer, ", tokenizer.name(),
                     "); give the tokenizer that the corpus was built with, or build it again "
                     "(moebius data build)");
  }
}

std::shared_ptr<const Corpus> open_source(const fs::path& file,
                                          const std::shared_ptr<const Tokenizer>& tokenizer,
                                          const fs::path& cache_dir, const BuildProgress& progress,
                                          const std::string& decode_device) {
  fs::path prefix = file;
  if (file.extension() != ".idx") {
    CorpusBuild build;
    build.files = {file};
    build.tokenizer = tokenizer;
    build.decode_device = decode_device;
    prefix = build.prefix = cached_prefix(file, *tokenizer, cache_dir);
    if (progress) build.progress = [&](int64_t done, int64_t total) { progress(file.string(), done, total); };
    if (!corpus_is_current(build)) build_corpus(build);
  }
  auto corpus = Corpus::open(prefix);
  check_tokenizer(*corpus, *tokenizer);
  return corpus;
}

void check_weights(const config::DataConfig& config) {
  if (config.weights.empty()) return;
  if (config.weights.size() != config.files.size()) {
    throw_user_error("data.weights has ", config.weights.size(), " values, but data.files names ",
                     config.files.size(), " files; give one weight per file, or none for shares by size");
  }
  if (std::accumulate(config.weights.begin(), config.weights.end(), 0.0) <= 0) {
    throw_user_error("data.weights are all 0; give at least one file a positive weight");
  }
}

}  // namespace

Sources open_sources(const config::DataConfig& config, const fs::path& default_cache_dir,
                     const BuildProgress& progress) {
  Sources sources;
  if (!config.synthetic || config.tokenizer != "bytes") sources.tokenizer = open_tokenizer(config.tokenizer);
  if (config.synthetic) return sources;
  if (config.files.empty()) {
    throw_user_error(
        "data.files is empty; name at least one text file or .idx corpus (or set data.synthetic = true "
        "for random tokens)");
  }
  check_weights(config);
  const fs::path cache_dir = config.cache_dir.empty() ? default_cache_dir : fs::path(config.cache_dir);
  const double train_share = config.validation_file.empty() ? 1.0 - config.validation_fraction : 1.0;
  for (size_t i = 0; i < config.files.size(); ++i) {
    const std::string& file = config.files[i];
    auto corpus = open_source(file, sources.tokenizer, cache_dir, progress, config.decode.device);
    const int64_t num_tokens = corpus->num_tokens();
    const auto num_train = static_cast<int64_t>(static_cast<double>(num_tokens) * train_share);
    // A source without a training token keeps a weight, so that the sampler refuses it by name.
    const double by_size = static_cast<double>(std::max<int64_t>(num_train, 1));
    const double weight = config.weights.empty() ? by_size : config.weights[i];
    const std::string name = concat("data.files[", i, "] (", file, ")");
    sources.train.push_back({corpus, {0, num_train}, weight, name});
    sources.train_tokens += num_train;
    if (num_train < num_tokens) sources.validation.push_back({corpus, {num_train, num_tokens}});
  }
  if (!config.validation_file.empty()) {
    sources.validation = open_for_evaluation(config.validation_file, sources.tokenizer, cache_dir, progress);
  }
  for (const auto& part : sources.validation) sources.validation_tokens += part.range.size();
  return sources;
}

std::vector<ValidationSet::Part> open_for_evaluation(const fs::path& file,
                                                     const std::shared_ptr<const Tokenizer>& tokenizer,
                                                     const fs::path& cache_dir,
                                                     const BuildProgress& progress) {
  auto corpus = open_source(file, tokenizer, cache_dir, progress, "cpu");
  const TokenRange all{0, corpus->num_tokens()};
  return {{std::move(corpus), all}};
}

namespace {

// Some of the micro-batches of each step, as a step of their own.
class PartOfBatches : public BatchSource {
 public:
  PartOfBatches(std::unique_ptr<BatchSource> whole, int64_t first)
      : whole_(std::move(whole)), first_(first) {}
  void fill(int64_t step, int64_t micro, Batch& batch) override {
    whole_->fill(step, first_ + micro, batch);
    batch.micro = micro;
  }

 private:
  std::unique_ptr<BatchSource> whole_;
  int64_t first_;
};

std::unique_ptr<BatchSource> make_whole_batches(const config::DataConfig& config, const Sources& sources,
                                                const TrainingShape& shape) {
  const auto seed = static_cast<uint64_t>(shape.seed);
  if (config.synthetic) {
    return std::make_unique<SyntheticBatches>(
        seed, SyntheticShape{shape.sequence, shape.batch, shape.micro_batch, shape.vocab_size});
  }
  const config::Batching batching = config::parse_batching(config.batching, "data.batching");
  if (batching.kind != config::BatchingKind::window) {
    return std::make_unique<PlannedBatches>(
        sources.train,
        PlannedBatches::Options{
            .batching = batching,
            .shape = {.context = shape.sequence,
                      .rows = shape.micro_batch,
                      .micro_batches = shape.batch / shape.micro_batch,
                      .window = config.window,
                      .max_delay = config.max_delay},
            .cost = shape.cost,
            .stream = {.seed = seed, .context = shape.sequence, .may_split = config.split_documents},
            .vocab_size = shape.vocab_size});
  }
  Sampler sampler(sources.train, seed, shape.sequence, shape.batch);
  return std::make_unique<TextBatches>(std::move(sampler), shape.micro_batch, shape.vocab_size);
}

}  // namespace

std::unique_ptr<BatchSource> make_training_batches(const config::DataConfig& config, const Sources& sources,
                                                   const TrainingShape& shape) {
  auto whole = make_whole_batches(config, sources, shape);
  if (shape.parts == 1) return whole;
  const int64_t num_micro = shape.batch / shape.micro_batch;
  MOEBIUS_CHECK(num_micro % shape.parts == 0 && shape.part < shape.parts, num_micro,
                " micro-batches for part ", shape.part, " of ", shape.parts);
  return std::make_unique<PartOfBatches>(std::move(whole), num_micro / shape.parts * shape.part);
}

}  // namespace moebius::data
