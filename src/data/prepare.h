// From the data section of a config to everything that training and evaluation read.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "config/train_config.h"
#include "data/batches.h"
#include "data/build_progress.h"
#include "data/planner/cost_model.h"

namespace moebius::data {

struct Sources {
  std::shared_ptr<const Tokenizer> tokenizer;  // null for synthetic data without a tokenizer
  std::vector<SamplerSource> train;            // empty for synthetic data
  std::vector<ValidationSet::Part> validation;
  int64_t train_tokens = 0, validation_tokens = 0;
};

// Opens tokenizer and corpora of `config`. A text file is tokenized into a corpus below config.cache_dir (or
// `default_cache_dir` when that is empty) unless one is there that was made from the same text by the same
// tokenizer; a .idx is opened as it is. The last validation_fraction of the tokens of each source is for
// validation, or the whole of validation_file.
//
// UserError: no files, a missing, empty, binary or non-UTF-8 text, a damaged corpus, a corpus of another
// tokenizer, weights that do not match the files. Synthetic data opens nothing but a tokenizer that is not
// "bytes".
Sources open_sources(const config::DataConfig& config, const std::filesystem::path& default_cache_dir,
                     const BuildProgress& progress = {});

// One text file or corpus as validation parts, all of its tokens: `moebius eval --data FILE`.
std::vector<ValidationSet::Part> open_for_evaluation(const std::filesystem::path& file,
                                                     const std::shared_ptr<const Tokenizer>& tokenizer,
                                                     const std::filesystem::path& cache_dir,
                                                     const BuildProgress& progress = {});

struct TrainingShape {
  int64_t seed, sequence, batch, micro_batch;
  int64_t vocab_size;                    // of the model: no id may reach it
  CostModel cost = cost_of_width(4096);  // for data.batching = "balanced"
  // The batch is shared among `parts` processes, and this one takes part `part`: batch / micro_batch / parts
  // micro-batches that follow each other. Which sequences a micro-batch has does not depend on it.
  int64_t parts = 1, part = 0;
};

// The batches of a run: text of `sources`, made up as config.batching says, or random tokens when
// config.synthetic. Whatever the batching, a micro-batch has room for micro_batch * sequence tokens
// ('balanced': a quarter more) and a step has batch / micro_batch of them, over all parts.
std::unique_ptr<BatchSource> make_training_batches(const config::DataConfig& config, const Sources& sources,
                                                   const TrainingShape& shape);

}  // namespace moebius::data
