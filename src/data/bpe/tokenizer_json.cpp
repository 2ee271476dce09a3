// Opens a tokenizer.json with what stands beside it.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/strict_json.h"
#include "data/bpe/bpe_tokenizer.h"
#include "data/bpe/json_fields.h"
#include "data/bpe/tokenizer_file.h"
#include "data/checksum.h"
#include "data/tokenizer.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

// Ends of text of the families, for files that do not say.
constexpr const char* kUsualEnds[] = {"<|endoftext|>",         "</s>",       "<|end_of_text|>",
                                      "<｜end▁of▁sentence｜>", "<|return|>", "<eos>"};

// The token `name` ("eos_token") of tokenizer_config.json or special_tokens_map.json: its text, or an object
// with it. nullopt when the files are silent.
std::optional<std::string> special_token(const fs::path& folder, const std::string& name) {
  for (const char* file : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const fs::path path = folder / file;
    if (!fs::is_regular_file(path)) continue;
    const std::string what = path.string();
    const nlohmann::json root = parse_strict_json(read_file(path), what);
    const JsonField token = JsonField(root, what).find(name);
    if (token.is_null()) continue;
    return token.value().is_object() ? token.at("content").string() : token.string();
  }
  return std::nullopt;
}

int32_t special_id(const fs::path& path, const TokenizerFile& file, const std::string& name) {
  const auto token = special_token(path.parent_path(), name);
  if (!token) return -1;
  const int32_t id = file.id_of(*token);
  if (id < 0) {
    throw_user_error("tokenizer ", path.string(), " has no token '", *token,
                     "', which the files beside it name as ", name, "; put files of one model together");
  }
  return id;
}

}  // namespace

std::shared_ptr<const Tokenizer> load_tokenizer_json(const fs::path& path) {
  if (!fs::is_regular_file(path)) {
    throw_user_error("tokenizer '", path.string(),
                     "': there is no such file; give the path of a tokenizer.json");
  }
  const std::string json = read_file(path);
  TokenizerFile file = parse_tokenizer_file(json, path);
  BpeTokenizer::Identity identity;
  identity.name = path.filename().string();
  identity.bos_id = special_id(path, file, "bos_token");
  identity.eos_id = special_id(path, file, "eos_token");
  if (identity.bos_id < 0 && !file.prefix.empty()) identity.bos_id = file.prefix.front();
  if (identity.eos_id < 0 && !file.suffix.empty()) identity.eos_id = file.suffix.back();
  for (const char* token : kUsualEnds)
    if (identity.eos_id < 0) identity.eos_id = file.id_of(token);
  // Where documents end is part of what a corpus depends on.
  identity.fingerprint =
      checksum_of(concat(json, "\nbos ", identity.bos_id, "\neos ", identity.eos_id, "\n"));
  return std::make_shared<const BpeTokenizer>(std::move(file), std::move(identity));
}

}  // namespace moebius::data
