#include "ckpt/hf/export.h"

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "ckpt/hf/families/common.h"
#include "ckpt/hf/piece_copy.h"
#include "ckpt/tensor_bytes.h"
#include "ckpt/text.h"
#include "config/dump.h"

namespace moebius::ckpt::hf {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr char kDtypesFile[] = "dtypes.json";

const char* torch_name(DType dtype) {
  if (dtype == DType::bf16) return "bfloat16";
  if (dtype == DType::f16) return "float16";
  return dtype == DType::f64 ? "float64" : "float32";
}

// The same model with every field that has no effect at its default, and one spelling of what can be said in
// two ways.
config::ModelConfig normal_form(config::ModelConfig model) {
  const config::ModelConfig standard;
  model.init_std = standard.init_std;
  model.output_init_scale = standard.output_init_scale;
  model.mtp = standard.mtp;
  if (model.attention == "mla") {
    model.head_dim = 0;
    model.kv_heads = model.heads;
  } else {
    model.head_dim = head_dim_of(model);
    model.mla = standard.mla;
  }
  if (model.rotary_dim == model.head_dim) model.rotary_dim = 0;
  if (model.sliding_window == 0) model.sliding_layers.clear();
  if (static_cast<int64_t>(model.sliding_layers.size()) == model.layers) model.sliding_layers.clear();

  config::RopeConfig rope;
  rope.scaling = model.rope.scaling;
  if (rope.scaling != "none") rope.factor = model.rope.factor;
  if (rope.scaling != "none" && rope.scaling != "linear") rope.original_context = model.rope.original_context;
  if (rope.scaling == "llama3") {
    rope.low_freq_factor = model.rope.low_freq_factor;
    rope.high_freq_factor = model.rope.high_freq_factor;
  } else if (rope.scaling == "yarn") {
    const double low = rope.low_freq_factor, high = rope.high_freq_factor;
    rope = model.rope;
    rope.low_freq_factor = low;
    rope.high_freq_factor = high;
  }
  model.rope = rope;

  config::MoeConfig& moe = model.moe;
  if (moe.experts == 0) {
    moe = standard.moe;
    return model;
  }
  moe.selection_bias = moe.has_selection_bias();
  moe.balance = standard.moe.balance;
  moe.capacity_factor = 0;
  moe.shared_dim = moe.shared_width();
  moe.shared_experts = std::min<int64_t>(moe.shared_experts, 1);
  if (moe.softmax_order == "after_topk") {
    // A softmax over the chosen experts is one over all, divided by the sum of the chosen.
    moe.softmax_order = "before_topk";
    moe.normalize_weights = true;
  }
  if (moe.groups == 1) {
    moe.top_groups = 1;
    moe.group_score = standard.moe.group_score;
  }
  if (moe.activation == "swiglu") {
    moe.activation_alpha = standard.moe.activation_alpha;
    moe.activation_limit = standard.moe.activation_limit;
  }
  std::sort(moe.dense_layers.begin(), moe.dense_layers.end());
  if (moe.dense_layers.empty()) model.ffn_dim = standard.ffn_dim;
  return model;
}

std::vector<config::Difference> differences(const config::ModelConfig& wanted,
                                            const config::ModelConfig& expressed) {
  config::RunConfig left, right;
  left.model = normal_form(wanted);
  right.model = normal_form(expressed);
  return config::diff(left, right, "model.");
}

std::string write_config(const Family& family, const config::ModelConfig& model, DType dtype,
                         int64_t max_positions) {
  ordered_json json;
  json["architectures"] = {std::string(family.architecture)};
  json["model_type"] = std::string(family.model_type);
  json["dtype"] = torch_name(dtype);
  json["max_position_embeddings"] = max_positions;
  write_common(model, json);
  family.write(model, json);
  return json.dump(2) + "\n";
}

// What the family cannot say of the model.
std::vector<config::Difference> lost(const Family& family, const config::ModelConfig& model,
                                     const std::string& text) {
  const nlohmann::json parsed = nlohmann::json::parse(text);
  try {
    return differences(model, family.read(JsonReader(parsed, std::string(family.model_type))));
  } catch (const UserError& error) {
    return {{error.what(), "", ""}};
  }
}

struct Choice {
  const Family* family;
  std::string config_text;
};

// The carried config of a model that has got a module of multi-token prediction since.
std::string with_mtp(const Family& family, const config::ModelConfig& model, const std::string& text) {
  constexpr char kField[] = "num_nextn_predict_layers";
  ordered_json json = ordered_json::parse(text);
  if (!family.has_mtp || model.mtp.depth == 0 || json.value(kField, int64_t{0}) == model.mtp.depth)
    return text;
  json[kField] = model.mtp.depth;
  return json.dump(2) + "\n";
}

Choice choose_family(const config::ModelConfig& model, const Carried& carried, DType dtype,
                     const ExportOptions& options) {
  if (!carried.config_text.empty()) {
    const nlohmann::json json = JsonReader::parse(carried.config_text, "the carried config.json");
    const Family& family = family_of(JsonReader(json, "the carried config.json"));
    const bool wanted = options.family.empty() || options.family == family.model_type;
    if (wanted && lost(family, model, carried.config_text).empty())
      return {&family, with_mtp(family, model, carried.config_text)};
  }
  if (!options.family.empty()) {
    const Family& family = family_named(options.family);
    return {&family, config_text(family, model, dtype, options.max_positions)};
  }
  std::string reasons;
  for (const Family* family : families()) {
    std::string text = write_config(*family, model, dtype, options.max_positions);
    const std::vector<config::Difference> missing = lost(*family, model, text);
    if (missing.empty()) return {family, std::move(text)};
    reasons += concat("\n  ", family->model_type, ": ", missing.front().path);
    if (missing.size() > 1) reasons += concat(" and ", missing.size() - 1, " more");
  }
  throw_user_error("no known model type can express this model; of each, what it lacks:", reasons,
                   "\nname one with --family to see all that it lacks");
}

std::string shard_name(size_t shard, size_t count) {
  if (count == 1) return "model.safetensors";
  char text[64];
  std::snprintf(text, sizeof text, "model-%05zu-of-%05zu.safetensors", shard + 1, count);
  return text;
}

std::vector<std::vector<DiskTensor>> cut(const std::vector<DiskTensor>& items, int64_t shard_bytes) {
  std::vector<std::vector<DiskTensor>> shards;
  int64_t filled = 0;
  for (const DiskTensor& item : items) {
    const auto num_bytes = static_cast<int64_t>(item.spec.num_bytes().value());
    if (shards.empty() || (filled > 0 && filled + num_bytes > shard_bytes)) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(item);
    filled += num_bytes;
  }
  return shards;
}

int64_t write_shard(const fs::path& path, const std::vector<DiskTensor>& items, int64_t before,
                    const ExportOptions& options) {
  std::vector<TensorSpec> specs;
  for (const DiskTensor& item : items) specs.push_back(item.spec);
  const SafetensorsLayout layout = layout_safetensors(specs, {{"format", "pt"}});
  AtomicFile file(path, static_cast<int64_t>(layout.file_bytes));
  file.write(layout.head);
  // Each tensor is put together while the one before it is written.
  const auto as_on_disk = [&](size_t i) { return items[layout.source[i]].make(); };
  std::future<at::Tensor> next = std::async(std::launch::async, as_on_disk, 0);
  for (size_t i = 0; i < layout.tensors.size(); ++i) {
    const at::Tensor disk = next.get();
    if (i + 1 < layout.tensors.size()) next = std::async(std::launch::async, as_on_disk, i + 1);
    emit_bytes(disk, [&](std::span<const std::byte> bytes) { file.write(bytes); });
    if (options.progress)
      options.progress(before + file.bytes_written() - static_cast<int64_t>(layout.head.size()));
  }
  file.commit();
  return file.bytes_written() - static_cast<int64_t>(layout.head.size());
}

bool is_tensor_file(const fs::path& path) {
  const std::string name = path.filename().string();
  return name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json") ||
         name.ends_with(".bin") || name.ends_with(".pt") || name.ends_with(".pth") || name.ends_with(".gguf");
}

// Everything but weights.
void copy_side_files(const fs::path& from, const fs::path& folder) {
  constexpr uintmax_t kLargest = 64 << 20;
  for (const fs::directory_entry& entry : fs::directory_iterator(from)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name.front() == '.' || is_tensor_file(entry.path()) ||
        entry.file_size() > kLargest || name == kDtypesFile)
      continue;
    write_file_atomic(folder / name, read_file(entry.path()));
  }
}

}  // namespace

void write_carried(const ImportPlan& plan, const ModelFolder& from, const fs::path& folder) {
  make_folders(folder);
  copy_side_files(from.path(), folder);
  if (plan.quantisation.kind != Quantisation::Kind::none) {
    ordered_json config = ordered_json::parse(read_file(folder / "config.json"));
    config.erase("quantization_config");
    write_file_atomic(folder / "config.json", config.dump(2) + "\n");
  }
  std::map<DType, int64_t> count;
  std::map<std::string, DType> dtypes;
  for (const Piece& piece : plan.pieces) {
    const Storage storage = storage_of(piece, from);
    const bool plain = storage.kind == Quantisation::Kind::none;
    const DType dtype = dtypes[piece.name] = plain ? storage.values->spec.dtype : DType::bf16;
    count[dtype] += piece.num_elements() * static_cast<int64_t>(item_bytes(dtype));
  }
  const DType most = std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) {
                       return a.second < b.second;
                     })->first;
  ordered_json json;
  json["most"] = dtype_name(most);
  json["exceptions"] = ordered_json::object();
  for (const auto& [name, dtype] : dtypes)
    if (dtype != most) json["exceptions"][name] = dtype_name(dtype);
  json["copies"] = ordered_json::array();
  for (const Piece& piece : plan.pieces)
    if (piece.is_copy) json["copies"].push_back(piece.name);
  write_file_atomic(folder / kDtypesFile, json.dump(2) + "\n");
}

Carried read_carried(const fs::path& folder) {
  Carried carried;
  if (folder.empty() || !fs::exists(folder / "config.json")) return carried;
  carried.config_text = read_file(folder / "config.json");
  if (!fs::exists(folder / kDtypesFile)) return carried;
  const std::string where = (folder / kDtypesFile).string();
  const nlohmann::json json = JsonReader::parse(read_file(where), where);
  const JsonReader reader(json, where);
  const auto dtype_of = [&](const JsonReader& object, const std::string& key) {
    const std::optional<DType> dtype = dtype_from_name(object.text(key));
    if (!dtype) throw_user_error(where, ": ", in_quotes(object.text(key)), " is not a type of tensors");
    return *dtype;
  };
  carried.dtype = dtype_of(reader, "most");
  const JsonReader exceptions = reader.object("exceptions");
  for (const auto& [name, value] : exceptions.raw().items())
    carried.exceptions[name] = dtype_of(exceptions, name);
  for (const std::string& name : reader.texts("copies")) carried.copies.insert(name);
  return carried;
}

std::string config_text(const Family& family, const config::ModelConfig& model, DType dtype,
                        int64_t max_positions) {
  std::string text = write_config(family, model, dtype, max_positions);
  const std::vector<config::Difference> missing = lost(family, model, text);
  if (missing.empty()) return text;
  throw_user_error("the model type ", family.model_type,
                   " cannot express this model (left: the model, right: what ", family.model_type,
                   " would make of it):\n", config::describe_differences(missing));
}

int64_t export_model(const config::ModelConfig& model, const std::string& precision,
                     const nn::ParamTable& params, const fs::path& out, const ExportOptions& options) {
  NewFolder folder(out);
  const Carried carried = read_carried(options.carried);
  const DType own = precision == "bf16" ? DType::bf16 : DType::f32;
  // Half-precision files came in as fp32, where nothing of them is lost.
  const bool keeps_dtype = !carried.config_text.empty() &&
                           (carried.dtype == own || (carried.dtype == DType::f16 && own == DType::f32));
  const DType most = keeps_dtype ? carried.dtype : own;
  const Choice choice = choose_family(model, carried, most, options);

  const nlohmann::json json = nlohmann::json::parse(choice.config_text);
  const std::vector<Piece> pieces = choice.family->pieces(model, JsonReader(json, "config.json"));
  std::map<std::string, const nn::Param*> by_name;
  for (const nn::Param& param : params.params()) by_name[param.spec.name] = &param;
  std::vector<DiskTensor> items;
  for (const Piece& piece : pieces) {
    // Where a config came with the weights, so did the copies that its users look for.
    if (piece.is_copy && !carried.config_text.empty() && !carried.copies.contains(piece.name)) continue;
    const auto found = by_name.find(piece.param);
    MOEBIUS_CHECK(found != by_name.end(), piece.name, " comes from the parameter ", piece.param,
                  ", which is not there");
    if (options.integers != nullptr) {
      const auto held = options.integers->by_param.find(piece.param);
      if (held != options.integers->by_param.end()) {
        for (DiskTensor& tensor : compressed(piece, held->second, options.integers->is_packed()))
          items.push_back(std::move(tensor));
        continue;
      }
    }
    DType dtype = found->second->spec.is_buffer ? DType::f32 : most;
    const auto exception = carried.exceptions.find(piece.name);
    if (keeps_dtype && exception != carried.exceptions.end()) dtype = exception->second;
    items.push_back({{piece.name, dtype, piece.shape}, [&piece, param = found->second, dtype] {
                       return copy_to_disk(piece, param->value).to(scalar_type_of(dtype));
                     }});
  }

  if (!options.carried.empty() && fs::exists(options.carried))
    copy_side_files(options.carried, folder.path());
  for (const fs::path& file : options.extra_files)
    if (!fs::exists(folder.path() / file.filename()))
      write_file_atomic(folder.path() / file.filename(), read_file(file));
  write_file_atomic(folder.path() / "config.json",
                    options.integers == nullptr
                        ? choice.config_text
                        : with_compression(choice.config_text, *options.integers, pieces));
  const std::vector<std::vector<DiskTensor>> shards = cut(items, options.shard_bytes);
  ordered_json map;
  int64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(i, shards.size());
    total += write_shard(folder.path() / name, shards[i], total, options);
    for (const DiskTensor& item : shards[i]) map[item.spec.name] = name;
  }
  if (shards.size() > 1) {
    ordered_json index;
    index["metadata"]["total_size"] = total;
    index["weight_map"] = map;
    write_file_atomic(folder.path() / "model.safetensors.index.json", index.dump(2) + "\n");
  }
  folder.publish();
  return total;
}

}  // namespace moebius::ckpt::hf
