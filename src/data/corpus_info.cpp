// The sidecar of a corpus: JSON with a format version.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/corpus.h"

namespace moebius::data {
namespace {

constexpr const char* kFormat = "moebius-corpus";
constexpr int kVersion = 1;
constexpr const char* kWayOut = "; build the corpus again (moebius data build)";

// Fields of one JSON object, with errors that name file and field.
class Fields {
 public:
  Fields(const nlohmann::json& object, const std::filesystem::path& file) : object_(object), file_(file) {
    if (!object.is_object()) throw_user_error("corpus ", file.string(), ": not a JSON object", kWayOut);
  }

  template <class T>
  T get(const char* name) const {
    const auto found = object_.find(name);
    if (found == object_.end())
      throw_user_error("corpus ", file_.string(), ": field ", name, " is missing", kWayOut);
    const bool fits = std::is_same_v<T, std::string> ? found->is_string() : found->is_number_integer();
    if (!fits) {
      throw_user_error("corpus ", file_.string(), ": ", name, " is ", found->dump(), ", expected ",
                       std::is_same_v<T, std::string> ? "text" : "a whole number", kWayOut);
    }
    return found->template get<T>();
  }

 private:
  const nlohmann::json& object_;
  const std::filesystem::path& file_;
};

}  // namespace

std::string to_json(const CorpusInfo& info) {
  nlohmann::ordered_json sources = nlohmann::ordered_json::array();
  for (const SourceFile& s : info.sources) {
    sources.push_back(
        {{"path", s.path}, {"bytes", s.bytes}, {"modified_ns", s.modified_ns}, {"checksum", s.checksum}});
  }
  nlohmann::ordered_json json = {{"format", kFormat},
                                 {"version", kVersion},
                                 {"tokenizer", info.tokenizer},
                                 {"tokenizer_fingerprint", info.tokenizer_fingerprint},
                                 {"vocab_size", info.vocab_size},
                                 {"split", info.split},
                                 {"num_tokens", info.num_tokens},
                                 {"num_documents", info.num_documents},
                                 {"text_bytes", info.text_bytes},
                                 {"bin_bytes", info.bin_bytes},
                                 {"bin_checksum", info.bin_checksum},
                                 {"idx_bytes", info.idx_bytes},
                                 {"idx_checksum", info.idx_checksum},
                                 {"sources", sources}};
  if (!info.recipe.empty()) json["recipe"] = info.recipe;
  for (const auto& [name, value] : info.counters) json["counters"][name] = value;
  // A path need not be UTF-8; the sidecar must be.
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

CorpusInfo parse_corpus_info(const std::string& text, const std::filesystem::path& file) {
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) throw_user_error("corpus ", file.string(), ": not valid JSON", kWayOut);
  const Fields fields(json, file);
  if (const auto format = fields.get<std::string>("format"); format != kFormat) {
    throw_user_error("corpus ", file.string(), ": format is '", format, "', expected '", kFormat, "'",
                     kWayOut);
  }
  if (const auto version = fields.get<int64_t>("version"); version != kVersion) {
    throw_user_error("corpus ", file.string(), ": version is ", version, ", expected ", kVersion, kWayOut);
  }
  CorpusInfo info;
  info.tokenizer = fields.get<std::string>("tokenizer");
  info.tokenizer_fingerprint = fields.get<std::string>("tokenizer_fingerprint");
  info.vocab_size = fields.get<int64_t>("vocab_size");
  info.split = fields.get<std::string>("split");
  info.num_tokens = fields.get<int64_t>("num_tokens");
  info.num_documents = fields.get<int64_t>("num_documents");
  info.text_bytes = fields.get<int64_t>("text_bytes");
  info.bin_bytes = fields.get<int64_t>("bin_bytes");
  info.bin_checksum = fields.get<std::string>("bin_checksum");
  info.idx_bytes = fields.get<int64_t>("idx_bytes");
  info.idx_checksum = fields.get<std::string>("idx_checksum");
  const auto sources = json.find("sources");
  if (sources == json.end() || !sources->is_array()) {
    throw_user_error("corpus ", file.string(), ": field sources is missing or no list", kWayOut);
  }
  for (const auto& entry : *sources) {
    const Fields source(entry, file);
    info.sources.push_back({source.get<std::string>("path"), source.get<int64_t>("bytes"),
                            source.get<int64_t>("modified_ns"), source.get<std::string>("checksum")});
  }
  if (json.contains("recipe")) info.recipe = fields.get<std::string>("recipe");
  if (const auto counters = json.find("counters"); counters != json.end()) {
    const Fields values(*counters, file);
    for (const auto& [name, value] : counters->items())
      info.counters.emplace_back(name, values.get<int64_t>(name.c_str()));
  }
  return info;
}

}  // namespace moebius::data
