// manifest.json of a checkpoint: what the checkpoint holds and how to know that it is whole.
// docs/formats/checkpoint.md describes every field. The text ends with the checksum of everything before it,
// so that any edit is noticed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/safetensors.h"

namespace moebius::ckpt {

inline constexpr std::string_view kManifestFile = "manifest.json";
inline constexpr std::string_view kManifestFormat = "moebius-checkpoint";
inline constexpr int64_t kManifestVersion = 1;
inline constexpr uint64_t kMaxManifestBytes = uint64_t{64} << 20;

struct ManifestShard {
  std::string file;  // a plain name inside the checkpoint's folder
  std::string group;
  uint64_t num_bytes = 0;
  uint64_t xxh3 = 0;
};

struct ManifestTensor {
  TensorSpec spec;
  size_t shard = 0;     // index into Manifest::shards
  uint64_t offset = 0;  // of the first data byte, from the start of the shard's file
};

struct ManifestGroup {
  std::string name;
  std::vector<ManifestTensor> tensors;  // sorted by name
};

struct Manifest {
  int64_t step = 0;
  std::string config;             // effective configuration, as text
  std::string state_json = "{}";  // a JSON object
  std::vector<ManifestShard> shards;
  std::vector<ManifestGroup> groups;  // sorted by name

  uint64_t num_bytes() const;  // of all shards
};

// The same manifest always gives the same text.
std::string manifest_text(const Manifest& manifest);

// Checks everything that can be checked without the shards. UserError naming `file`, the field, expected and
// found.
Manifest parse_manifest(const std::string& file, std::string_view text);

}  // namespace moebius::ckpt
