#include "ckpt/hf/import.h"

#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/check.h"
#include "base/error.h"
#include "ckpt/text.h"

namespace moebius::ckpt::hf {
namespace {

// A sum is finite only when all values are; the reverse is looked at closely, for sums that merely overflow.
bool is_finite(const at::Tensor& values) {
  return std::isfinite(values.sum().item().toDouble()) || at::isfinite(values).all().item<bool>();
}

bool is_float(DType dtype) {
  return dtype == DType::f64 || dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16;
}

// Tensors that published checkpoints carry and nothing needs.
bool is_needless(const std::string& name, const ImportPlan& plan, const JsonReader& json) {
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  if (name == "lm_head.weight" && plan.model.tied_embeddings) return true;
  // Layers behind the last one are multi-token prediction modules (DeepSeek-V3, GLM-4.5).
  constexpr std::string_view kLayers = "model.layers.";
  if (json.integer("num_nextn_predict_layers", 0) == 0 || !name.starts_with(kLayers)) return false;
  const std::string number = name.substr(kLayers.size(), name.find('.', kLayers.size()) - kLayers.size());
  if (number.empty() || number.size() > 6 || number.find_first_not_of("0123456789") != std::string::npos)
    return false;
  return std::stoll(number) >= plan.model.layers;
}

void compare_tensors(const ModelFolder& folder, ImportPlan& plan) {
  std::vector<std::string> missing, extra, wrong;
  std::set<std::string> needed;
  for (const Piece& piece : plan.pieces) {
    needed.insert(piece.name);
    const auto found = folder.entries().find(piece.name);
    if (found == folder.entries().end()) {
      missing.push_back(piece.name);
    } else if (found->second.spec.shape != piece.shape) {
      wrong.push_back(concat(piece.name, " has the shape ", shape_text(found->second.spec.shape), ", but ",
                             shape_text(piece.shape), " is expected"));
    } else if (!is_float(found->second.spec.dtype)) {
      wrong.push_back(concat(piece.name, " is of the type ", dtype_name(found->second.spec.dtype),
                             "; a floating-point type is expected"));
    }
  }
  std::vector<std::string> needless;
  for (const auto& [name, entry] : folder.entries()) {
    if (needed.contains(name)) continue;
    (is_needless(name, plan, folder.config()) ? needless : extra).push_back(name);
  }
  if (!needless.empty()) plan.notes.push_back(concat("left out: ", names_text(needless)));
  if (missing.empty() && extra.empty() && wrong.empty()) return;
  std::string text = concat(folder.path().string(), " is not the ", plan.family->architecture,
                            " that its config.json describes:");
  constexpr size_t kShown = 20;
  if (!missing.empty()) text += concat("\n  missing (", missing.size(), "): ", names_text(missing, kShown));
  if (!extra.empty()) text += concat("\n  not expected (", extra.size(), "): ", names_text(extra, kShown));
  for (size_t i = 0; i < std::min(wrong.size(), kShown); ++i) text += "\n  " + wrong[i];
  if (wrong.size() > kShown) text += concat("\n  and ", wrong.size() - kShown, " more of a wrong shape");
  throw UserError(text);
}

}  // namespace

ImportPlan plan_import(const ModelFolder& folder) {
  ImportPlan plan;
  plan.family = &family_of(folder.config());
  plan.model = plan.family->read(folder.config());
  plan.pieces = plan.family->pieces(plan.model, folder.config());
  compare_tensors(folder, plan);
  plan.precision = "bf16";
  for (const Piece& piece : plan.pieces) {
    const DType dtype = folder.entries().at(piece.name).spec.dtype;
    // Correction biases are fp32 in bf16 models, as they are here.
    if (dtype != DType::bf16 && !piece.param.ends_with(".router_bias")) plan.precision = "fp32";
  }
  std::stable_sort(plan.pieces.begin(), plan.pieces.end(), [&](const Piece& a, const Piece& b) {
    const auto &left = folder.entries().at(a.name), &right = folder.entries().at(b.name);
    return std::pair(left.file, left.begin) < std::pair(right.file, right.begin);
  });
  return plan;
}

ImportResult import_weights(const ImportPlan& plan, ModelFolder& folder, nn::ParamTable& params,
                            const std::function<void(int64_t)>& progress) {
  ImportResult result;
  size_t file = 0;
  for (const Piece& piece : plan.pieces) {
    const ModelFolder::Entry& entry = folder.entries().at(piece.name);
    for (; file < entry.file; ++file) folder.release(file);
    nn::Param* const param = params.find(piece.param);
    MOEBIUS_CHECK(param != nullptr, piece.name, " goes to the parameter ", piece.param,
                  ", which is not there");
    const at::Tensor disk = folder.tensor(entry);
    copy_from_disk(piece, disk, param->value);
    if (!is_finite(view_of(piece, param->value))) result.non_finite.push_back(piece.name);
    result.num_bytes += static_cast<int64_t>(entry.num_bytes);
    if (progress) progress(result.num_bytes);
  }
  for (; file < folder.files().size(); ++file) folder.release(file);
  return result;
}

}  // namespace moebius::ckpt::hf
