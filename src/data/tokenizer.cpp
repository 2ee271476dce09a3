#include "data/tokenizer.h"

#include "base/check.h"
#include "data/text.h"

namespace moebius::data {

namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, Special special) const {
  std::vector<int32_t> ids;
  if (special == Special::kTemplate) ids = prefix_ids_;
  encode(text, ids);
  if (special == Special::kTemplate) ids.insert(ids.end(), suffix_ids_.begin(), suffix_ids_.end());
  return ids;
}

size_t Tokenizer::split_point(std::string_view text, size_t from) const {
  if (!separable_at_newlines() || from >= text.size()) return text.size();
  const size_t newline = text.find('\n', from);
  return newline == std::string_view::npos ? text.size() : newline + 1;
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text.append(token_bytes(id));
  if (has_dummy_prefix_ && text.starts_with(' ')) text.erase(0, 1);
  return text;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  MOEBIUS_CHECK_GE(id, 0);
  if (id >= vocab_size()) return kReplacementCharacter;
  return std::string_view(bytes_).substr(offsets_[id], offsets_[id + 1] - offsets_[id]);
}

void Tokenizer::add_token(std::string_view bytes) {
  bytes_.append(bytes);
  offsets_.push_back(static_cast<int64_t>(bytes_.size()));
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool continues)
    : tokenizer_(tokenizer), drop_space_(tokenizer.has_dummy_prefix() && !continues) {}

std::string StreamDecoder::push(int32_t id) {
  std::string_view bytes = tokenizer_.token_bytes(id);
  if (drop_space_ && !bytes.empty()) {
    if (bytes.starts_with(' ')) bytes.remove_prefix(1);
    drop_space_ = false;
  }
  pending_.append(bytes);
  const size_t ready = pending_.size() - unfinished_utf8_tail(pending_);
  std::string text = to_valid_utf8(std::string_view(pending_).substr(0, ready));
  pending_.erase(0, ready);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text = to_valid_utf8(pending_);
  pending_.clear();
  return text;
}

namespace {

class BytesTokenizer : public Tokenizer {
 public:
  BytesTokenizer() {
    name_ = "bytes";
    fingerprint_ = "bytes-1";
    for (int i = 0; i < 256; ++i) {
      const char byte = static_cast<char>(i);
      add_token({&byte, 1});
    }
  }

  void encode(std::string_view text, std::vector<int32_t>& ids) const override {
    ids.reserve(ids.size() + text.size());
    for (const char c : text) ids.push_back(static_cast<unsigned char>(c));
  }

  bool separable_at_newlines() const override { return true; }
};

}  // namespace

std::shared_ptr<const Tokenizer> make_bytes_tokenizer() {
  static const auto tokenizer = std::make_shared<const BytesTokenizer>();
  return tokenizer;
}

std::vector<std::filesystem::path> companions_of(const std::string& spec) {
  std::vector<std::filesystem::path> files;
  if (spec == "bytes") return files;
  const std::filesystem::path folder = std::filesystem::path(spec).parent_path();
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"})
    if (std::filesystem::is_regular_file(folder / name)) files.push_back(folder / name);
  return files;
}

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& spec) {
  if (spec == "bytes") return make_bytes_tokenizer();
  return std::filesystem::path(spec).extension() == ".json" ? load_tokenizer_json(spec)
                                                            : load_sentencepiece(spec);
}

}  // namespace moebius::data
