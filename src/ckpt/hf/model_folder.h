// A model folder in the Hugging Face layout, opened for reading: config.json, and the tensors of
// model.safetensors or of the shards that model.safetensors.index.json names. Headers are checked when it is
// opened; tensors are parts of memory maps. Without torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "ckpt/hf/json_reader.h"
#include "ckpt/safetensors.h"

namespace moebius::ckpt::hf {

class ModelFolder {
 public:
  // UserError naming the file when the folder has no config.json or no weights, when a header is damaged,
  // when the index names a shard or a tensor that is not there, or when a tensor occurs twice.
  static ModelFolder open(const std::filesystem::path& folder);

  ~ModelFolder();
  ModelFolder(ModelFolder&&) noexcept;

  const std::filesystem::path& path() const { return path_; }
  const JsonReader& config() const { return *config_; }

  struct Entry {
    TensorSpec spec;
    size_t file = 0;  // index into files()
    uint64_t begin = 0, num_bytes = 0;
  };
  // By name.
  const std::map<std::string, Entry>& entries() const { return entries_; }
  const std::vector<std::filesystem::path>& files() const { return files_; }

  // The values, as long as the folder is open.
  std::span<const std::byte> bytes(const Entry& entry) const;
  // Hints: these values are read next; they will not be read soon again, and their memory may go.
  void will_read(const Entry& entry) const;
  void was_read(const Entry& entry) const;

 private:
  ModelFolder();

  std::filesystem::path path_;
  std::unique_ptr<nlohmann::json> json_;
  std::unique_ptr<JsonReader> config_;
  std::vector<std::filesystem::path> files_;
  std::vector<MappedFile> maps_;
  std::map<std::string, Entry> entries_;
};

// Name of each tensor -> name of its file, as the text of an index file says. UserError for anything else.
std::map<std::string, std::string> parse_index(std::string_view text, const std::string& where);

}  // namespace moebius::ckpt::hf
