// A model folder in the Hugging Face layout, opened for reading: config.json, and the tensors of
// model.safetensors or of the shards that model.safetensors.index.json names. Headers are checked when it is
// opened; tensors are views of memory maps.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
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

  // The values, on the CPU. Valid until the file is released.
  at::Tensor tensor(const Entry& entry) const;
  // Gives the memory of a file's map back; its tensors are not to be read any more.
  void release(size_t file);

 private:
  ModelFolder();

  std::filesystem::path path_;
  std::unique_ptr<nlohmann::json> json_;
  std::unique_ptr<JsonReader> config_;
  std::vector<std::filesystem::path> files_;
  std::vector<MappedFile> maps_;
  std::map<std::string, Entry> entries_;
};

}  // namespace moebius::ckpt::hf
