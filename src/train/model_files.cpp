#include "train/model_files.h"

#include <ATen/core/grad_mode.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "ckpt/hf/json_reader.h"
#include "config/dump.h"
#include "config/load.h"
#include "config/validate.h"
#include "moe/moe_feed_forward.h"
#include "parallel/spread_model.h"
#include "train/quantised_model.h"

namespace moebius::train {
namespace {

std::unique_ptr<nn::Decoder> allocated(const config::RunConfig& config, at::Device device,
                                       const parallel::Mesh* mesh = nullptr) {
  std::unique_ptr<nn::Decoder> decoder =
      mesh != nullptr ? parallel::make_spread_decoder(config, *mesh) : moe::make_decoder(config.model);
  decoder->params().allocate(dtype_of(config.train.precision), device);
  return decoder;
}

// The tokenizer that the run keeps a copy of, else the one that its config names.
std::shared_ptr<const data::Tokenizer> tokenizer_of(const ckpt::Checkpoint& checkpoint,
                                                    const config::DataConfig& data, std::string& spec) {
  if (data.synthetic && data.tokenizer == "bytes") return nullptr;
  const std::filesystem::path copy =
      checkpoint.path().parent_path().parent_path() / tokenizer_copy_name(data.tokenizer);
  const bool has_copy = data.tokenizer != "bytes" && std::filesystem::exists(copy);
  spec = has_copy ? copy.string() : data.tokenizer;
  auto tokenizer = data::open_tokenizer(spec);
  const auto state = nlohmann::json::parse(checkpoint.state_json());
  const std::string expected = state.value("tokenizer_fingerprint", tokenizer->fingerprint());
  if (tokenizer->fingerprint() != expected)
    throw_user_error(spec, " is the tokenizer ", tokenizer->fingerprint(), ", but ",
                     checkpoint.path().string(), " was trained with ", expected,
                     "; put the original file back");
  return tokenizer;
}

}  // namespace

std::string tokenizer_copy_name(const std::string& tokenizer) {
  return "tokenizer" + std::filesystem::path(tokenizer).extension().string();
}

at::ScalarType dtype_of(const std::string& precision) {
  return precision == "bf16" ? at::kBFloat16 : at::kFloat;
}

int64_t vocabulary(const config::RunConfig& config, const data::Tokenizer* tokenizer) {
  if (tokenizer == nullptr) return config.model.vocab;
  if (config.model.vocab == 0) return tokenizer->vocab_size();
  if (config.model.vocab < tokenizer->vocab_size())
    throw_user_error("model.vocab is ", config.model.vocab, ", but data.tokenizer '", config.data.tokenizer,
                     "' has ", tokenizer->vocab_size(),
                     " tokens; set model.vocab to at least that, or to 0 to let the tokenizer decide");
  return config.model.vocab;
}

std::unique_ptr<nn::Decoder> make_model(const config::RunConfig& config, at::Device device,
                                        const parallel::Mesh* mesh) {
  std::unique_ptr<nn::Decoder> decoder = allocated(config, device, mesh);
  decoder->params().initialise(static_cast<uint64_t>(config.train.seed));
  return decoder;
}

std::filesystem::path carried_folder(const std::filesystem::path& run_dir) {
  return run_dir / "hf";
}

void keep_carried(const std::filesystem::path& from_run, const std::filesystem::path& to_run) {
  const std::filesystem::path from = carried_folder(from_run), to = carried_folder(to_run);
  if (!std::filesystem::is_directory(from) || std::filesystem::exists(to)) return;
  make_folders(to);
  for (const std::filesystem::directory_entry& entry : std::filesystem::directory_iterator(from))
    if (entry.is_regular_file()) write_file_atomic(to / entry.path().filename(), read_file(entry.path()));
}

std::vector<std::filesystem::path> kept_tokenizer(const std::filesystem::path& run_dir,
                                                  const std::string& spec) {
  const std::filesystem::path tokenizer = run_dir / tokenizer_copy_name(spec);
  if (spec == "bytes" || !std::filesystem::exists(tokenizer)) return {};
  std::vector<std::filesystem::path> files = data::companions_of(tokenizer.string());
  files.insert(files.begin(), tokenizer);
  return files;
}

std::vector<int64_t> carried_end_ids(const std::filesystem::path& run_dir, int64_t vocab) {
  for (const char* const name : {"generation_config.json", "config.json"}) {
    const std::filesystem::path path = carried_folder(run_dir) / name;
    if (!std::filesystem::exists(path)) continue;
    const nlohmann::json json = ckpt::hf::JsonReader::parse(read_file(path), path.string());
    const ckpt::hf::JsonReader reader(json, path.string());
    constexpr char kField[] = "eos_token_id";
    if (!reader.has(kField)) continue;
    const std::vector<int64_t> ids =
        json[kField].is_array() ? reader.integers(kField) : std::vector<int64_t>{reader.integer(kField)};
    for (const int64_t id : ids)
      if (id < 0 || id >= vocab)
        throw_user_error(path.string(), ": ", kField, " names the token ", id, ", but the vocabulary has ",
                         vocab, "; correct the file");
    return ids;
  }
  return {};
}

std::filesystem::path load_initial_weights(const config::RunConfig& config, nn::Decoder& decoder) {
  const std::string& source = config.train.initial_weights;
  LoadedModel loaded = load_model(source, at::kCPU, false);
  std::vector<config::Difference> differences;
  config::RunConfig left, right;
  left.model = loaded.config.model;
  right.model = config.model;
  for (config::Difference& difference : config::diff(left, right, "model.")) {
    // How weights begin and how experts are balanced may change.
    const std::string& path = difference.path;
    const bool is_free = path == "model.init_std" || path == "model.output_init_scale" ||
                         path == "model.moe.capacity_factor" || path.starts_with("model.mtp.") ||
                         path.starts_with("model.moe.balance.");
    if (!is_free) differences.push_back(std::move(difference));
  }
  if (!differences.empty())
    throw_user_error("train.initial_weights: ", source, " is of another model (left: there, right: here):\n",
                     config::describe_differences(differences));
  const at::NoGradGuard no_grad;
  for (const nn::Param& param : loaded.decoder->params().params())
    if (nn::Param* const ours = decoder.params().find(param.spec.name))
      nn::copy_from_whole(ours->slice, param.value, ours->value);
  return loaded.checkpoint;
}

ckpt::TensorGroup model_group(nn::Decoder& decoder) {
  ckpt::TensorGroup group{kModelGroup, {}};
  for (const nn::Param& param : decoder.params().params())
    group.tensors.push_back({param.spec.name, param.value.detach()});
  return group;
}

namespace {

// All but the values of the parameters.
LoadedModel described_model(const ckpt::Checkpoint& checkpoint, at::Device device, bool with_tokenizer) {
  LoadedModel loaded;
  loaded.config =
      config::parse_run_config(checkpoint.config(), (checkpoint.path() / "manifest.json").string());
  loaded.step = checkpoint.step();
  loaded.checkpoint = checkpoint.path();
  if (with_tokenizer || loaded.config.model.vocab == 0)
    loaded.tokenizer = tokenizer_of(checkpoint, loaded.config.data, loaded.tokenizer_spec);
  loaded.config.model.vocab = vocabulary(loaded.config, loaded.tokenizer.get());
  loaded.decoder = allocated(loaded.config, device);
  for (nn::Param& param : loaded.decoder->params().params()) param.value.set_requires_grad(false);
  return loaded;
}

}  // namespace

std::filesystem::path LoadedModel::run_dir() const {
  return std::filesystem::absolute(checkpoint).parent_path().parent_path();
}

LoadedModel load_model(const std::filesystem::path& path, at::Device device, bool with_tokenizer) {
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(path);
  refuse_quantised(checkpoint, "is quantised", "name the float run that it was made from");
  LoadedModel loaded = described_model(checkpoint, device, with_tokenizer);
  const std::vector<ckpt::TensorGroup> groups{model_group(*loaded.decoder)};
  checkpoint.load(groups);
  return loaded;
}

LoadedModel load_model_quantised(const std::filesystem::path& path, at::Device device,
                                 const std::vector<std::string>& overrides) {
  for (const std::string& text : overrides)
    if (!text.starts_with("quant."))
      throw_user_error("--set ", text, ": of a trained model only fields of [quant] can be set");
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(path);
  refuse_quantised(checkpoint, "is quantised", "name the float run that it was made from");
  LoadedModel loaded = described_model(checkpoint, device, true);
  config::apply_overrides(loaded.config, overrides);
  config::validate(loaded.config);
  const std::vector<ckpt::TensorGroup> groups{model_group(*loaded.decoder)};
  checkpoint.load(groups);
  loaded.quantisation = Quantisation::attach(loaded.config, *loaded.decoder);
  return loaded;
}

LoadedModel load_model_to_run(const std::filesystem::path& path, at::Device device) {
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(path);
  const std::optional<quant::Scheme> scheme = scheme_of(checkpoint);
  LoadedModel loaded = described_model(checkpoint, device, true);
  if (scheme) {
    load_quantised(checkpoint, *scheme, *loaded.decoder);
    loaded.scheme = quant::name_of(*scheme);
  } else {
    const std::vector<ckpt::TensorGroup> groups{model_group(*loaded.decoder)};
    checkpoint.load(groups);
    loaded.quantisation = Quantisation::attach(loaded.config, *loaded.decoder);
    if (loaded.quantisation) loaded.quantisation->restore(checkpoint);
  }
  return loaded;
}

LoadedModel map_model(const std::filesystem::path& path) {
  return map_model(ckpt::open_run_or_checkpoint(path));
}

LoadedModel map_model(const ckpt::Checkpoint& checkpoint) {
  refuse_quantised(checkpoint, "is quantised", "name the float run that it was made from");
  LoadedModel loaded = described_model(checkpoint, at::kCPU, false);
  // The memory that was allocated has never been touched: it costs nothing.
  const std::vector<at::Tensor> values = checkpoint.mapped(model_group(*loaded.decoder));
  size_t i = 0;
  for (nn::Param& param : loaded.decoder->params().params()) param.value = values[i++];
  return loaded;
}

LoadedModel map_quantised_model(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme,
                                std::vector<MappedCodes>& codes) {
  LoadedModel loaded = described_model(checkpoint, at::kCPU, false);
  codes = map_quantised(checkpoint, scheme, *loaded.decoder);
  loaded.scheme = quant::name_of(scheme);
  return loaded;
}

}  // namespace moebius::train
