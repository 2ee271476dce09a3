#include "ckpt/hf/model_folder.h"

#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "ckpt/text.h"

namespace moebius::ckpt::hf {
namespace {

namespace fs = std::filesystem;

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

}  // namespace

std::map<std::string, std::string> parse_index(std::string_view text, const std::string& where) {
  const nlohmann::json json = JsonReader::parse(text, where);
  const JsonReader map = JsonReader(json, where).object("weight_map");
  std::map<std::string, std::string> files;
  for (const auto& [name, file] : map.raw().items()) {
    if (!file.is_string()) throw_user_error(map.where(), ": the file of ", in_quotes(name), " is not a text");
    const auto shard = file.get<std::string>();
    if (shard.empty() || fs::path(shard).filename() != shard || shard.front() == '.')
      throw_user_error(map.where(), ": ", in_quotes(shard), " is not the name of a file in the same folder");
    files[name] = shard;
  }
  if (files.empty()) throw_user_error(map.where(), " names no tensor");
  return files;
}

ModelFolder::ModelFolder() = default;
ModelFolder::~ModelFolder() = default;
ModelFolder::ModelFolder(ModelFolder&&) noexcept = default;

ModelFolder ModelFolder::open(const fs::path& folder) {
  if (!fs::is_directory(folder)) throw_user_error("'", folder.string(), "' is not a folder");
  ModelFolder opened;
  opened.path_ = folder;
  const fs::path config = folder / "config.json";
  if (!fs::exists(config))
    throw_user_error("'", folder.string(), "' holds no config.json; a Hugging Face model folder is expected");
  opened.json_ = std::make_unique<nlohmann::json>(JsonReader::parse(read_file(config), config.string()));
  opened.config_ = std::make_unique<JsonReader>(*opened.json_, config.string());

  std::map<std::string, std::string> index;
  std::set<std::string> names;
  if (fs::exists(folder / kIndex)) {
    index = parse_index(read_file(folder / kIndex), (folder / kIndex).string());
    for (const auto& [tensor, file] : index) names.insert(file);
  } else if (fs::exists(folder / kSingle)) {
    names.insert(kSingle);
  } else {
    throw_user_error("'", folder.string(), "' holds neither ", kSingle, " nor ", kIndex,
                     "; other formats of weights are not read");
  }
  for (const std::string& name : names) {
    const fs::path file = folder / name;
    if (!fs::exists(file))
      throw_user_error((folder / kIndex).string(), " names the shard '", name, "', which is not there");
    MappedFile map(file);
    const SafetensorsHeader header = parse_safetensors(file.string(), map.bytes());
    for (const TensorEntry& tensor : header.tensors) {
      const auto [found, added] = opened.entries_.emplace(
          tensor.spec.name, Entry{tensor.spec, opened.files_.size(), tensor.begin, tensor.num_bytes});
      if (!added)
        throw_user_error("the tensor ", in_quotes(tensor.spec.name), " is in two files: '",
                         opened.files_[found->second.file].string(), "' and '", file.string(), "'");
    }
    opened.files_.push_back(file);
    opened.maps_.push_back(std::move(map));
  }
  for (const auto& [tensor, file] : index) {
    const auto found = opened.entries_.find(tensor);
    if (found == opened.entries_.end() || opened.files_[found->second.file].filename() != file)
      throw_user_error((folder / kIndex).string(), " says that ", in_quotes(tensor), " is in '", file,
                       "', but it is not there");
  }
  return opened;
}

std::span<const std::byte> ModelFolder::bytes(const Entry& entry) const {
  return maps_[entry.file].bytes().subspan(entry.begin, entry.num_bytes);
}

void ModelFolder::will_read(const Entry& entry) const {
  maps_[entry.file].will_read(entry.begin, entry.num_bytes);
}

void ModelFolder::was_read(const Entry& entry) const {
  maps_[entry.file].was_read(entry.begin, entry.num_bytes);
}

}  // namespace moebius::ckpt::hf
