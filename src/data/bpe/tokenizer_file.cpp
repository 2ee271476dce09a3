#include "data/bpe/tokenizer_file.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "data/bpe/json_fields.h"
#include "data/bpe/unicode.h"

namespace moebius::data {
namespace {

using nlohmann::json;

constexpr int64_t kMaxId =
    (1 << 22) - 1;  // 16 times the largest vocabularies; bounds what a wrong id allocates

void read_vocabulary(const JsonField& field, TokenizerFile& file) {
  if (!field.value().is_object()) field.fail("expected an object of tokens and ids");
  if (field.value().empty()) field.fail("there is nothing to encode with");
  // Ids may have holes, but a few tokens have no ids in the millions: memory is as large as the largest.
  const size_t most = 4096 + 64 * field.value().size();
  for (const auto& [token, value] : field.value().items()) {
    const JsonField entry(value, field.what(), field.path() + "[" + json(token).dump() + "]");
    const auto id = static_cast<size_t>(entry.integer(0, kMaxId));
    if (id > most) entry.fail(concat("but there are only ", field.value().size(), " tokens"));
    if (id >= file.tokens.size()) file.tokens.resize(id + 1);
    TokenizerFile::Token& place = file.tokens[id];
    if (place.known) entry.fail("which " + json(place.text).dump() + " has already");
    place = {token, true};
    file.ids.emplace(token, static_cast<int32_t>(id));
  }
}

std::pair<std::string, std::string> read_pair(const JsonField& field) {
  if (field.value().is_array()) {
    if (field.value().size() != 2) field.fail("expected two tokens");
    return {field.at(size_t{0}).string(), field.at(size_t{1}).string()};
  }
  const std::string text = field.string();
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
    field.fail("expected two tokens with one space between them");
  return {text.substr(0, space), text.substr(space + 1)};
}

void read_merges(const JsonField& field, TokenizerFile& file) {
  const size_t count = field.array_size();
  file.merges.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const JsonField entry = field.at(i);
    const auto [left, right] = read_pair(entry);
    const auto id = [&](const std::string& token) {
      const auto found = file.ids.find(token);
      if (found == file.ids.end()) entry.fail("but model.vocab has no token " + json(token).dump());
      return found->second;
    };
    file.merges.push_back({id(left), id(right), id(left + right), static_cast<uint32_t>(i)});
  }
}

void read_model(const JsonField& field, TokenizerFile& file) {
  const JsonField type = field.find("type");
  if (!type.is_null() && type.string() != "BPE")
    type.fail("but only BPE models are supported; a SentencePiece .model can be given as it is");
  for (const char* name : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const JsonField affix = field.find(name);
    if (!affix.is_null() && !affix.string().empty()) affix.fail("which is not supported");
  }
  const JsonField dropout = field.find("dropout");
  if (!dropout.is_null() && dropout.value() != 0)
    dropout.fail("but merges are not dropped at random here; remove it from the file");
  read_vocabulary(field.at("vocab"), file);
  read_merges(field.at("merges"), file);
  file.ignore_merges = field.boolean_or("ignore_merges", false);
  file.byte_fallback = field.boolean_or("byte_fallback", false);
  file.fuse_unk = field.boolean_or("fuse_unk", false);
  const JsonField unk = field.find("unk_token");
  if (!unk.is_null()) {
    const auto found = file.ids.find(unk.string());
    if (found == file.ids.end()) unk.fail("but model.vocab has no such token");
    file.unk_id = found->second;
  }
}

void read_added_tokens(const JsonField& field, TokenizerFile& file) {
  if (field.is_null()) return;
  std::unordered_map<int32_t, std::string> seen;
  for (size_t i = 0; i < field.array_size(); ++i) {
    const JsonField entry = field.at(i);
    AddedToken token;
    const JsonField id = entry.at("id"), content = entry.at("content");
    token.id = static_cast<int32_t>(id.integer(0, kMaxId));
    token.content = content.string();
    token.special = entry.boolean_or("special", false);
    token.normalized = entry.boolean_or("normalized", !token.special);
    token.single_word = entry.boolean_or("single_word", false);
    token.lstrip = entry.boolean_or("lstrip", false);
    token.rstrip = entry.boolean_or("rstrip", false);
    if (const auto known = file.ids.find(token.content); known != file.ids.end() && known->second != token.id)
      id.fail(concat("but ", json(token.content).dump(), " is ", known->second, " in model.vocab"));
    const auto at = static_cast<size_t>(token.id);
    if (at < file.tokens.size() && file.tokens[at].known && file.tokens[at].text != token.content)
      id.fail("which is " + json(file.tokens[at].text).dump() + " in model.vocab");
    const auto [other, added] = seen.emplace(token.id, token.content);
    if (!added && other->second != token.content)
      id.fail("which " + json(other->second).dump() + " has already");
    file.added.push_back(std::move(token));
  }
}

// Code point of each byte value in GPT-2's alphabet: itself where it is a visible Latin-1 character, else the
// next free one from U+0100 on.
std::array<uint16_t, 256> alphabet() {
  std::array<uint16_t, 256> codes{};
  uint16_t next = 256;
  for (int b = 0; b < 256; ++b) {
    const bool visible = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    codes[b] = visible ? static_cast<uint16_t>(b) : next++;
  }
  return codes;
}

}  // namespace

std::string alphabet_of_byte(uint8_t byte) {
  static const auto codes = alphabet();
  std::string text;
  append_utf8(codes[byte], text);
  return text;
}

bool bytes_of_alphabet(std::string_view text, std::string& bytes) {
  static const auto values = [] {
    std::array<int16_t, 512> all;
    all.fill(-1);
    const auto codes = alphabet();
    for (int b = 0; b < 256; ++b) all[codes[b]] = static_cast<int16_t>(b);
    return all;
  }();
  bytes.clear();
  for (size_t at = 0; at < text.size();) {
    const Decoded c = decode_utf8(text, at);
    if (c.code >= values.size() || values[c.code] < 0) return false;
    bytes += static_cast<char>(values[c.code]);
    at += c.length;
  }
  return true;
}

int64_t TokenizerFile::vocab_size() const {
  auto size = static_cast<int64_t>(tokens.size());
  for (const AddedToken& token : added) size = std::max<int64_t>(size, token.id + 1);
  return size;
}

int32_t TokenizerFile::id_of(const std::string& token) const {
  for (const AddedToken& each : added)
    if (each.content == token) return each.id;
  const auto found = ids.find(token);
  return found == ids.end() ? -1 : found->second;
}

TokenizerFile parse_tokenizer_file(const std::string& text, const std::filesystem::path& path) {
  const std::string what = "tokenizer " + path.string();
  const json root = parse_strict_json(text, what);
  const JsonField all(root, what);
  TokenizerFile file;
  read_model(all.at("model"), file);
  read_added_tokens(all.find("added_tokens"), file);
  file.normalizer = read_normalizer(all.find("normalizer"));
  file.pre_tokenizer = read_pre_tokenizer(all.find("pre_tokenizer"), file.byte_level);
  file.decoder = read_decoder(all.find("decoder"));
  read_post_processor(all.find("post_processor"), file);
  return file;
}

}  // namespace moebius::data
