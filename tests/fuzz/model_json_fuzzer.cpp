// The readers of config.json and of the index of shards: a checked description of a model, or UserError.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "ckpt/hf/plan.h"

namespace {

using namespace moebius::ckpt::hf;

// Among them one that makes a module of multi-token prediction out of the layer behind a model's last.
constexpr std::string_view kNames[] = {"lm_head.weight", "model.layers.1.enorm.weight",
                                       "model.layers.2.enorm.weight", "model.norm.weight"};

void describe(std::string_view text) {
  const nlohmann::json json = JsonReader::parse(text, "config.json");
  const JsonReader reader(json, "config.json");
  try {
    quantisation_of(reader);
  } catch (const moebius::UserError&) {
  }
  const Description described = describe_model(reader, kNames);
  for (const Piece& piece : described.pieces)
    for (const int64_t dim : piece.shape)
      if (dim < 1) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    describe(text);
  } catch (const moebius::UserError&) {
  }
  try {
    for (const auto& [name, file] : parse_index(text, "index"))
      if (file.find('/') != std::string::npos || file.front() == '.') std::abort();
  } catch (const moebius::UserError&) {
  }
  return 0;
}
