// The JSON of a safetensors header as it stands in the file: grammar, key names, dtypes and number ranges
// checked; offsets and names not yet compared with each other. Internal to the reader.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/safetensors.h"

namespace moebius::ckpt {

struct RawTensor {
  TensorSpec spec;
  uint64_t begin = 0;  // relative to the data section
  uint64_t end = 0;
};

struct RawHeader {
  std::vector<RawTensor> tensors;  // in the order of the header; names may repeat
  std::map<std::string, std::string> metadata;
};

// Works event by event, without a document in memory: a hostile header costs no more than a few times its
// size. Throws UserError.
RawHeader parse_raw_header(const std::string& file, std::string_view json, const SafetensorsLimits& limits);

}  // namespace moebius::ckpt
