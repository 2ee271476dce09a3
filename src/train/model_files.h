// Models in memory and in checkpoints.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "config/train_config.h"
#include "data/tokenizer.h"
#include "nn/decoder.h"
#include "quant/int8_product.h"
#include "train/quantisation.h"

namespace moebius::parallel {
class Mesh;
}

namespace moebius::train {

struct MappedCodes;  // train/quantised_model.h

// Group names in checkpoints.
inline constexpr char kModelGroup[] = "model";
inline constexpr char kOptimizerGroup[] = "optimizer";

// Name of the copy of a tokenizer file that a run folder keeps, so that the run needs nothing else.
std::string tokenizer_copy_name(const std::string& tokenizer);

at::ScalarType dtype_of(const std::string& precision);

// config.model.vocab, or the tokenizer's size where that is 0. UserError when the tokenizer has ids that the
// model has no row for. `tokenizer` may be null for synthetic data.
int64_t vocabulary(const config::RunConfig& config, const data::Tokenizer* tokenizer);

// A model with its memory; values are as initialised from the seed. With a mesh this rank's part of it.
std::unique_ptr<nn::Decoder> make_model(const config::RunConfig& config, at::Device device,
                                        const parallel::Mesh* mesh = nullptr);

// Fills the model with the weights of a run or checkpoint (train.initial_weights), with conversion of dtype;
// what multi-token prediction adds keeps its values. Returns the checkpoint that was read. UserError listing
// what differs when the checkpoint is of another model.
std::filesystem::path load_initial_weights(const config::RunConfig& config, nn::Decoder& decoder);

// Where a run keeps what came with an imported model (ckpt/hf/export.h).
std::filesystem::path carried_folder(const std::filesystem::path& run_dir);
// What came with an imported model goes on with a run that comes from it; nothing when that has some.
void keep_carried(const std::filesystem::path& from_run, const std::filesystem::path& to_run);

// The copy of its tokenizer that a run keeps, and the files beside it; none when it has no copy. `spec`:
// data.tokenizer of the run.
std::vector<std::filesystem::path> kept_tokenizer(const std::filesystem::path& run_dir,
                                                  const std::string& spec);

// The tokens that end a text as an imported model says (eos_token_id of generation_config.json, else of
// config.json: one or a list); empty for other runs. UserError for a value that is no token of the
// vocabulary.
std::vector<int64_t> carried_end_ids(const std::filesystem::path& run_dir, int64_t vocab);

ckpt::TensorGroup model_group(nn::Decoder& decoder);

// A trained model, ready for evaluation and generation: parameters do not require gradients.
struct LoadedModel {
  config::RunConfig config;  // as stored; model.vocab is set
  int64_t step = 0;
  std::filesystem::path checkpoint;
  std::unique_ptr<nn::Decoder> decoder;
  // Of a run with [quant], by load_model_to_run: the decoder's products see quantised values. Else null.
  std::shared_ptr<Quantisation> quantisation;
  std::shared_ptr<const data::Tokenizer> tokenizer;  // null for synthetic data
  std::string tokenizer_spec;                        // what it was opened from; "" for synthetic data
  std::string scheme;                                // of a quantised model; "" for floats

  std::filesystem::path run_dir() const;  // that the checkpoint is in
};

// `path`: a run folder (its newest checkpoint) or a checkpoint. UserError when it is neither, is damaged, or
// when its tokenizer is gone, and for a quantised one. Without `with_tokenizer` none is opened unless the
// vocabulary's size needs it.
LoadedModel load_model(const std::filesystem::path& path, at::Device device, bool with_tokenizer = true);

// The same with its tokenizer, for evaluation and generation: quantised checkpoints too
// (train/quantised_model.h), and runs with [quant] as they were trained, with hard rounding.
LoadedModel load_model_to_run(const std::filesystem::path& path, at::Device device);

// The same for a checkpoint in floats with other values in [quant] ("quant.scheme=int8"), without what a
// training has remembered for its own: see calibrate(). UserError for fields of other sections.
LoadedModel load_model_quantised(const std::filesystem::path& path, at::Device device,
                                 const std::vector<std::string>& overrides);

// load_model without a tokenizer and without copies: the parameters are the checkpoint's memory maps, only to
// be read (Checkpoint::mapped).
LoadedModel map_model(const std::filesystem::path& path);
LoadedModel map_model(const ckpt::Checkpoint& checkpoint);
// The same of a quantised checkpoint: parameters that are codes have no value; `codes` gets them.
LoadedModel map_quantised_model(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme,
                                std::vector<MappedCodes>& codes);

}  // namespace moebius::train
