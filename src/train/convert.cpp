#include "train/convert.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "ckpt/hf/export.h"
#include "ckpt/hf/import.h"
#include "ckpt/text.h"
#include "config/dump.h"
#include "config/load.h"
#include "moe/moe_feed_forward.h"
#include "moe/upcycle.h"
#include "train/model_files.h"
#include "train/quantised_model.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;
namespace hf = ckpt::hf;

constexpr const char* kTokenizerFiles[] = {"tokenizer.json", "tokenizer.model"};

config::RunConfig config_of(const hf::ImportPlan& plan, const hf::ModelFolder& folder,
                            const std::string& precision) {
  config::RunConfig config;
  config.model = plan.model;
  config.train.precision = precision.empty() ? plan.precision : precision;
  constexpr int64_t kLongest = 2048;
  config.train.sequence =
      std::clamp<int64_t>(folder.config().integer("max_position_embeddings", kLongest), 2, kLongest);
  config.data.synthetic = true;
  for (const char* const name : kTokenizerFiles) {
    if (!fs::exists(folder.path() / name)) continue;
    config.data.synthetic = false;
    config.data.tokenizer = name;
    break;
  }
  // What the model file says may still be nonsense; the same rules hold as for a config by hand.
  return config::parse_run_config(config::dump(config, config::DumpStyle::kMinimal), folder.config().where());
}

// The config with which `moebius train` goes on from the converted model.
std::string starting_config(config::RunConfig config, const fs::path& run_dir) {
  config.train.initial_weights = run_dir.string();
  return "# Goes on from the weights in this folder:\n#   moebius train " +
         (run_dir / "config.toml").string() + " --run NEW --set data.files=TEXT --set train.steps=N\n" +
         config::dump(config, config::DumpStyle::kMinimal);
}

// A quantised model for an export.
LoadedModel map_integers(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme,
                         hf::IntegerWeights& integers) {
  std::vector<MappedCodes> codes;
  LoadedModel loaded = map_quantised_model(checkpoint, scheme, codes);
  integers.group = group_of(checkpoint, scheme);
  integers.rounds_activations = scheme == quant::Scheme::int8_w8a8;
  for (MappedCodes& each : codes) integers.by_param[each.name] = {each.codes, each.scales, integers.group};
  return loaded;
}

}  // namespace

FromHfResult convert_from_hf(const FromHfOptions& options) {
  const hf::ModelFolder folder = hf::ModelFolder::open(options.from);
  const hf::ImportPlan plan = hf::plan_import(folder);
  FromHfResult result;
  result.architecture = plan.family->architecture;
  result.notes = plan.notes;
  result.config = config_of(plan, folder, options.precision);

  NewFolder out(options.to);
  const std::unique_ptr<nn::Decoder> decoder = moe::make_decoder(result.config.model);
  result.num_parameters = decoder->params().num_elements();
  const std::vector<std::string> differing = hf::differing_copies(plan, folder);
  if (!differing.empty())
    result.notes.push_back(
        concat("left out, because the model has one parameter for them and what they should be "
               "copies of, and the values differ: ",
               ckpt::names_text(differing)));

  hf::write_carried(plan, folder, carried_folder(out.path()));
  if (!result.config.data.synthetic) {
    const std::string& name = result.config.data.tokenizer;
    write_file_atomic(out.path() / name, read_file(options.from / name));
    for (const fs::path& file : data::companions_of((options.from / name).string()))
      write_file_atomic(out.path() / file.filename(), read_file(file));
  }
  ckpt::CheckpointMeta meta;
  meta.config = config::dump(result.config, config::DumpStyle::kMinimal);
  hf::ImportStream stream(plan, folder, decoder->params(), dtype_of(result.config.train.precision),
                          options.progress);
  const std::vector<ckpt::PendingGroup> groups{stream.group(kModelGroup)};
  ckpt::write_checkpoint(out.path(), meta, groups, {});
  result.num_bytes = stream.result().num_bytes;
  result.non_finite = stream.result().non_finite;
  write_file_atomic(out.path() / "config.toml", starting_config(result.config, out.final_path()));
  out.publish();
  return result;
}

ToHfResult convert_to_hf(const ToHfOptions& options) {
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(options.from);
  const std::optional<quant::Scheme> scheme = scheme_of(checkpoint);
  hf::IntegerWeights integers;
  const LoadedModel loaded = scheme ? map_integers(checkpoint, *scheme, integers) : map_model(checkpoint);
  const fs::path run_dir = loaded.run_dir();
  hf::ExportOptions out;
  if (scheme) out.integers = &integers;
  out.family = options.family;
  out.shard_bytes = options.shard_bytes;
  out.max_positions = loaded.config.train.sequence;
  out.progress = options.progress;
  if (fs::is_directory(carried_folder(run_dir))) out.carried = carried_folder(run_dir);
  for (const char* const name : kTokenizerFiles)
    if (fs::exists(run_dir / name)) out.extra_files.push_back(run_dir / name);
  ToHfResult result;
  result.step = loaded.step;
  result.num_bytes = hf::export_model(loaded.config.model, loaded.config.train.precision,
                                      loaded.decoder->params(), options.to, out);
  return result;
}

UpcycleResult convert_upcycle(const UpcycleOptions& options) {
  const LoadedModel dense = load_model(options.from, at::kCPU, false);
  config::RunConfig config = dense.config;
  config::MoeConfig moe;
  moe.experts = options.experts;
  moe.top_k = options.top_k;
  config.model = moe::upcycled_config(dense.config.model, moe);
  config.train.seed = options.seed;
  config.train.initial_weights.clear();
  config = config::parse_run_config(config::dump(config, config::DumpStyle::kMinimal), options.from.string());

  NewFolder out(options.to);
  const std::unique_ptr<nn::Decoder> routed = moe::make_decoder(config.model);
  routed->params().allocate(dtype_of(config.train.precision), at::kCPU);
  routed->params().initialise(static_cast<uint64_t>(options.seed));
  moe::upcycle(dense.decoder->params(), routed->params());

  const std::vector<fs::path> tokenizer = kept_tokenizer(dense.run_dir(), config.data.tokenizer);
  for (const fs::path& file : tokenizer) write_file_atomic(out.path() / file.filename(), read_file(file));
  if (!tokenizer.empty()) config.data.tokenizer = tokenizer.front().filename().string();
  ckpt::CheckpointMeta meta;
  meta.config = config::dump(config, config::DumpStyle::kMinimal);
  const std::vector<ckpt::TensorGroup> groups{model_group(*routed)};
  ckpt::save_checkpoint(out.path(), meta, groups, {});
  write_file_atomic(out.path() / "config.toml", starting_config(config, out.final_path()));
  out.publish();
  return {dense.decoder->params().num_elements(), routed->params().num_elements()};
}

}  // namespace moebius::train
