#include "ckpt/hf/plan.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "ckpt/text.h"
#include "config/json.h"
#include "config/validate.h"

namespace moebius::ckpt::hf {
namespace {

using Kind = Quantisation::Kind;

constexpr int64_t kMxGroup = 32;  // values of MXFP4 that share a scale

// What a config.json says may still be nonsense; the same rules hold as for a config by hand.
config::ModelConfig checked(const config::ModelConfig& model, const std::string& where) {
  config::RunConfig run;
  run.model = model;
  const config::ModelConfig read = config::from_json(config::to_json(run), where).model;
  if (read.vocab < 1) throw_user_error(where, ": vocab_size is ", read.vocab, "; it must be at least 1");
  try {
    config::validate_model(read);
  } catch (const UserError& error) {
    throw_user_error(where, " describes a model that cannot be built:\n", error.what());
  }
  return read;
}

// A list of pieces takes memory before anything says that a config's sizes are not its folder's.
void check_count(const config::ModelConfig& model, size_t num_tensors, const std::string& where) {
  const int64_t count = model.layers * (32 + 3 * model.moe.experts);
  const auto most = static_cast<int64_t>(10'000 + 20 * num_tensors);
  if (count <= most) return;
  throw_user_error(where, " describes ", model.layers, " layers of ", model.moe.experts,
                   " experts, but there are only ", num_tensors,
                   " tensors; are shards missing, or is it the config of another model?");
}

bool any_begins_with(std::span<const std::string_view> names, std::string_view prefix) {
  const auto found = std::lower_bound(names.begin(), names.end(), prefix);
  return found != names.end() && found->starts_with(prefix);
}

bool is_float(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

const ModelFolder::Entry* find(const ModelFolder& folder, const std::string& name) {
  const auto found = folder.entries().find(name);
  return found == folder.entries().end() ? nullptr : &found->second;
}

// Tensors that published checkpoints carry and nothing needs.
bool is_needless(const std::string& name, const ImportPlan& plan, const JsonReader& json) {
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  if (name == "lm_head.weight" && plan.model.tied_embeddings) return true;
  // Layers behind the last one are modules of multi-token prediction (DeepSeek-V3, GLM-4.5).
  constexpr std::string_view kLayers = "model.layers.";
  if (json.integer("num_nextn_predict_layers", 0) == 0 || !name.starts_with(kLayers)) return false;
  const std::string number = name.substr(kLayers.size(), name.find('.', kLayers.size()) - kLayers.size());
  if (number.empty() || number.size() > 6 || number.find_first_not_of("0123456789") != std::string::npos)
    return false;
  return std::stoll(number) >= plan.model.layers;
}

// Compares what pieces need with what the folder has.
class Comparison {
 public:
  Comparison(const ModelFolder& folder, ImportPlan& plan) : folder_(folder), plan_(plan) {}

  void run() {
    std::vector<Piece> present;
    for (Piece& piece : plan_.pieces)
      if (compare(piece)) present.push_back(std::move(piece));
    plan_.pieces = std::move(present);
    std::vector<std::string> needless;
    for (const auto& [name, entry] : folder_.entries())
      if (!needed_.contains(name))
        (is_needless(name, plan_, folder_.config()) ? needless : extra_).push_back(name);
    refuse_if_any();
    if (!needless.empty()) plan_.notes.push_back(concat("left out: ", names_text(needless)));
    if (num_quantised_ > 0)
      plan_.notes.push_back(concat(
          num_quantised_, " tensors in ",
          plan_.quantisation.kind == Kind::mxfp4 ? "MXFP4 (4 bits, groups of 32)" : "fp8 (e4m3, blocks)",
          " become bf16; an export writes them so"));
  }

 private:
  // False for a copy that is not there, which nothing misses.
  bool compare(const Piece& piece) {
    const Storage storage = storage_of(piece, folder_);
    if (storage.values == nullptr) {
      if (!piece.is_copy) missing_.push_back(piece.name);
      return false;
    }
    if (storage.kind != plan_.quantisation.kind && storage.kind != Kind::none) {
      wrong_.push_back(
          concat(piece.name, " is quantised, but config.json has no quantization_config that says how"));
      needed_.insert(storage.values->spec.name);
      if (storage.scales != nullptr) needed_.insert(storage.scales->spec.name);
      return false;
    }
    switch (storage.kind) {
      case Kind::none:
        need(*storage.values, piece.shape, is_float(storage.values->spec.dtype), "a floating-point type");
        break;
      case Kind::fp8_blocks:
        compare_fp8(piece, storage);
        break;
      case Kind::mxfp4:
        compare_mxfp4(piece, storage);
        break;
    }
    return true;
  }

  void compare_fp8(const Piece& piece, const Storage& storage) {
    ++num_quantised_;
    need(*storage.values, piece.shape, true, "");
    if (piece.shape.size() != 2) {
      wrong_.push_back(concat(piece.name, " is F8_E4M3 with the shape ", shape_text(piece.shape),
                              "; only matrices are read in blocks"));
    } else if (storage.scales == nullptr) {
      missing_.push_back(piece.name + "_scale_inv");
    } else {
      const Quantisation& blocks = plan_.quantisation;
      const auto count = [](int64_t size, int64_t block) { return (size + block - 1) / block; };
      need(*storage.scales,
           {count(piece.shape[0], blocks.block_rows), count(piece.shape[1], blocks.block_columns)},
           storage.scales->spec.dtype == DType::f32 || storage.scales->spec.dtype == DType::bf16,
           "F32 or BF16");
    }
  }

  void compare_mxfp4(const Piece& piece, const Storage& storage) {
    ++num_quantised_;
    const std::vector<int64_t>& shape = piece.shape;
    if (shape[1] % kMxGroup != 0)
      wrong_.push_back(
          concat(piece.name, " has ", shape[1], " values a row, not a multiple of the 32 of MXFP4"));
    const bool bytes = storage.values->spec.dtype == DType::u8;
    need(*storage.values, {shape[0], shape[2], shape[1] / kMxGroup, kMxGroup / 2}, bytes, "U8");
    if (storage.scales == nullptr) {
      missing_.push_back(piece.name + "_scales");
    } else {
      need(*storage.scales, {shape[0], shape[2], shape[1] / kMxGroup},
           storage.scales->spec.dtype == DType::u8, "U8");
    }
  }

  void need(const ModelFolder::Entry& entry, const std::vector<int64_t>& shape, bool right_type,
            const char* type) {
    needed_.insert(entry.spec.name);
    if (entry.spec.shape != shape)
      wrong_.push_back(concat(entry.spec.name, " has the shape ", shape_text(entry.spec.shape), ", but ",
                              shape_text(shape), " is expected"));
    else if (!right_type)
      wrong_.push_back(concat(entry.spec.name, " is of the type ", dtype_name(entry.spec.dtype), "; ", type,
                              " is expected"));
  }

  void refuse_if_any() const {
    if (missing_.empty() && extra_.empty() && wrong_.empty()) return;
    std::string text = concat(folder_.path().string(), " is not the ", plan_.family->architecture,
                              " that its config.json describes:");
    constexpr size_t kShown = 20;
    if (!missing_.empty())
      text += concat("\n  missing (", missing_.size(), "): ", names_text(missing_, kShown));
    if (!extra_.empty())
      text += concat("\n  not expected (", extra_.size(), "): ", names_text(extra_, kShown));
    for (size_t i = 0; i < std::min(wrong_.size(), kShown); ++i) text += "\n  " + wrong_[i];
    if (wrong_.size() > kShown)
      text += concat("\n  and ", wrong_.size() - kShown, " more of a wrong shape or type");
    throw UserError(text);
  }

  const ModelFolder& folder_;
  ImportPlan& plan_;
  std::set<std::string> needed_;
  std::vector<std::string> missing_, extra_, wrong_;
  size_t num_quantised_ = 0;
};

}  // namespace

Description describe_model(const JsonReader& json, std::span<const std::string_view> names) {
  Description description;
  description.family = &family_of(json);
  description.model = checked(description.family->read(json), json.where());
  check_count(description.model, names.size(), json.where());
  const int64_t predicted = json.integer("num_nextn_predict_layers", 0);
  const std::string behind = concat("model.layers.", description.model.layers, ".");
  if (description.family->has_mtp && predicted == 1 && any_begins_with(names, behind))
    description.model.mtp.depth = 1;
  description.pieces = description.family->pieces(description.model, json);
  for (const Piece& piece : description.pieces)
    if (std::any_of(piece.shape.begin(), piece.shape.end(), [](int64_t dim) { return dim < 1; }))
      throw_user_error(json.where(), " describes a tensor without elements: ", piece.name, " ",
                       shape_text(piece.shape), "; a count or a width in it is 0");
  return description;
}

Quantisation quantisation_of(const JsonReader& json) {
  Quantisation found;
  if (!json.has("quantization_config")) return found;
  const JsonReader config = json.object("quantization_config");
  const std::string method = config.text("quant_method", "");
  if (method == "mxfp4") {
    found.kind = Kind::mxfp4;
    return found;
  }
  if (method != "fp8")
    throw_user_error(
        config.where(), ": weights quantised by ", in_quotes(method),
        " are not read; read are fp8 (e4m3 with a scale for each block) and mxfp4; convert others to "
        "bf16 first, with Transformers for example");
  config.need_text("fmt", "e4m3");
  const std::vector<int64_t> block = config.integers("weight_block_size");
  constexpr int64_t kLargest = 1 << 20;
  if (block.size() != 2 || std::min(block[0], block[1]) < 1 || std::max(block[0], block[1]) > kLargest)
    throw_user_error(
        config.where(), ": weight_block_size is ", shape_text(block),
        "; two sizes are expected, as [128, 128] (fp8 with one scale for a tensor or a row is not read)");
  return {Kind::fp8_blocks, block[0], block[1]};
}

Storage storage_of(const Piece& piece, const ModelFolder& folder) {
  if (const ModelFolder::Entry* const entry = find(folder, piece.name)) {
    if (entry->spec.dtype != DType::f8_e4m3) return {Kind::none, entry, nullptr};
    return {Kind::fp8_blocks, entry, find(folder, piece.name + "_scale_inv")};
  }
  if (piece.transposed && piece.shape.size() == 3)
    if (const ModelFolder::Entry* const blocks = find(folder, piece.name + "_blocks"))
      return {Kind::mxfp4, blocks, find(folder, piece.name + "_scales")};
  return {};
}

ImportPlan plan_import(const ModelFolder& folder) {
  ImportPlan plan;
  std::vector<std::string_view> names;
  for (const auto& [name, entry] : folder.entries()) names.push_back(name);
  Description description = describe_model(folder.config(), names);
  plan.family = description.family;
  plan.model = std::move(description.model);
  plan.pieces = std::move(description.pieces);
  plan.quantisation = quantisation_of(folder.config());
  Comparison(folder, plan).run();
  plan.precision = "bf16";
  for (const Piece& piece : plan.pieces) {
    const Storage storage = storage_of(piece, folder);
    // Correction biases are fp32 in bf16 models, as they are here.
    if (storage.kind == Kind::none && storage.values->spec.dtype != DType::bf16 &&
        !piece.param.ends_with(".router_bias"))
      plan.precision = "fp32";
  }
  return plan;
}

}  // namespace moebius::ckpt::hf
