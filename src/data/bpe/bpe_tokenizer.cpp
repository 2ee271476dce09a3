#include "data/bpe/bpe_tokenizer.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "data/bpe/known_patterns.h"
#include "data/bpe/piece_cache.h"
#include "data/bpe/split_patterns.h"
#include "data/text.h"

namespace moebius::data {

struct BpeTokenizer::Workspace {
  bool fast = true;
  PieceCache cache;
  MergeTable::Scratch scratch;
  std::vector<int32_t> symbols;
  std::vector<AddedTokenMatcher::Part> raw_parts, normalized_parts;
  Pieces pieces;
  std::string normalized;
};

// A workspace of the tokenizer's own, given back at the end.
class BpeTokenizer::Lease {
 public:
  explicit Lease(const BpeTokenizer& owner) : owner_(owner) {
    const std::lock_guard lock(owner_.mutex_);
    if (owner_.idle_.empty()) {
      workspace_ = std::make_unique<Workspace>();
    } else {
      workspace_ = std::move(owner_.idle_.back());
      owner_.idle_.pop_back();
    }
  }
  ~Lease() {
    const std::lock_guard lock(owner_.mutex_);
    owner_.idle_.push_back(std::move(workspace_));
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  Workspace& operator*() const { return *workspace_; }

 private:
  const BpeTokenizer& owner_;
  std::unique_ptr<Workspace> workspace_;
};

// Appends ids, with room for whole blocks made ahead.
class BpeTokenizer::Sink {
 public:
  explicit Sink(std::vector<int32_t>& ids) : ids_(ids), begin_(ids.size()), size_(ids.size()) {}
  ~Sink() { ids_.resize(size_); }
  Sink(const Sink&) = delete;
  Sink& operator=(const Sink&) = delete;

  void push(int32_t id) { *room(1) = id, ++size_; }
  void append(std::span<const int32_t> ids) {
    std::copy(ids.begin(), ids.end(), room(ids.size()));
    size_ += ids.size();
  }
  // One copy of fixed size whatever the count is.
  void append(const PieceCache::Ids& ids) {
    std::memcpy(room(PieceCache::kShortIds), ids.ids, sizeof(ids.ids));
    size_ += ids.count;
  }

 private:
  int32_t* room(size_t count) {
    if (size_ + count > ids_.size()) ids_.resize(size_ + std::max({count, size_ - begin_, size_t{256}}));
    return ids_.data() + size_;
  }

  std::vector<int32_t>& ids_;
  size_t begin_, size_;
};

namespace {

// A cut that no split pattern of known_patterns.h and no merge goes across: between a letter and a space
// before a letter, or behind a line end that stands between something visible and a letter.
size_t safe_cut(std::string_view text, size_t from, bool at_spaces) {
  using namespace ascii;
  const auto is = [&](size_t i, uint8_t classes) { return (class_at(text, i) & classes) != 0; };
  for (size_t at = std::max<size_t>(from, 2); at < text.size(); ++at) {
    if (text[at - 1] == '\n' && is(at, kLetter) && is(at - 2, kLetter | kDigit | kPunct)) return at;
    if (at_spaces && text[at] == ' ' && is(at - 1, kLetter) && at + 1 < text.size() && is(at + 1, kLetter))
      return at;
  }
  return text.size();
}

// "<0x0A>", how byte-fallback vocabularies write the token of a byte.
std::string fallback_of_byte(uint8_t byte) {
  constexpr char kDigits[] = "0123456789ABCDEF";
  return concat("<0x", kDigits[byte >> 4], kDigits[byte & 15], ">");
}
int byte_of_fallback(const std::string& text) {
  if (text.size() != 6 || !text.starts_with("<0x")) return -1;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(text.data() + 3, text.data() + 5, value, 16);
  return error == std::errc() && end == text.data() + 5 && text[5] == '>' ? static_cast<int>(value) : -1;
}

std::string with_escaped_line_ends(const std::string& pattern) {
  return replace_all(replace_all(pattern, "\r", "\\r"), "\n", "\\n");
}

}  // namespace

BpeTokenizer::BpeTokenizer(TokenizerFile file, Identity identity)
    : file_(std::move(file)), merges_(file_.merges) {
  name_ = std::move(identity.name);
  fingerprint_ = std::move(identity.fingerprint);
  bos_id_ = identity.bos_id;
  eos_id_ = identity.eos_id;
  prefix_ids_ = file_.prefix;
  suffix_ids_ = file_.suffix;
  has_dummy_prefix_ = file_.decoder.strips_space;

  std::vector<AddedToken> raw, normalized;
  for (AddedToken& token : file_.added) {
    if (!token.normalized) {
      raw.push_back(token);
      continue;
    }
    std::string storage;
    token.content = file_.normalizer.apply(token.content, /*continued=*/false, storage);
    normalized.push_back(token);
  }
  add_tokens();
  if (file_.ignore_merges) {
    for (const auto& [token, id] : file_.ids) {
      std::string bytes = token;
      if (!file_.byte_level || bytes_of_alphabet(token, bytes)) whole_pieces_.emplace(std::move(bytes), id);
    }
  }
  raw_ = AddedTokenMatcher(std::move(raw));
  normalized_ = AddedTokenMatcher(std::move(normalized));
  split_ = recognise_split();
  word_begin_ = find_word_begin();
  lines_apart_ = keeps_lines_apart();
  splits_at_lines_ = finds_split_points();
  file_.merges = {};  // megabytes that nothing reads from here on
  file_.tokens = {};
}

BpeTokenizer::~BpeTokenizer() = default;

void BpeTokenizer::add_tokens() {
  std::vector<const AddedToken*> added(static_cast<size_t>(file_.vocab_size()));
  for (const AddedToken& token : file_.added) added[static_cast<size_t>(token.id)] = &token;
  std::string bytes;
  for (size_t id = 0; id < added.size(); ++id) {
    const bool in_model = id < file_.tokens.size() && file_.tokens[id].known;
    if (!in_model && added[id] == nullptr) {
      add_token("");  // an id that nothing has
      continue;
    }
    std::string text = in_model ? file_.tokens[id].text : added[id]->content;
    if (added[id] != nullptr && added[id]->special) {
      text.clear();
    } else if (file_.byte_level || file_.decoder.byte_level) {
      if (bytes_of_alphabet(text, bytes)) text = bytes;
    } else if (const int value = byte_of_fallback(text); file_.decoder.byte_fallback && value >= 0) {
      text = std::string(1, static_cast<char>(value));
    } else {
      for (const auto& [pattern, content] : file_.decoder.replacements)
        text = replace_all(text, pattern, content);
    }
    add_token(text);
  }
  int missing = 0;
  for (int value = 0; value < 256; ++value) {
    const auto byte = static_cast<uint8_t>(value);
    const auto found = file_.ids.find(file_.byte_level ? alphabet_of_byte(byte) : fallback_of_byte(byte));
    byte_ids_[byte] = found == file_.ids.end() ? -1 : found->second;
    // Bytes that UTF-8 never has may be absent without harm.
    if (byte_ids_[byte] < 0 && value != 0xC0 && value != 0xC1 && value < 0xF5) ++missing;
  }
  if (file_.byte_level && missing > 0 && file_.unk_id < 0) {
    log_warn("tokenizer ", name_, ": ", missing,
             " byte values have no token and there is no unk_token: text with them loses them");
  }
}

BpeTokenizer::Split BpeTokenizer::recognise_split() const {
  const auto& steps = file_.pre_tokenizer.steps();
  if (!file_.byte_level) return Split::kSteps;
  std::vector<std::string> patterns;
  for (const PreTokenizerStep& step : steps) {
    if (step.kind != PreTokenizerStep::Kind::kSplit || step.invert ||
        step.behavior != PreTokenizerStep::Behavior::kIsolated)
      return Split::kSteps;
    patterns.push_back(with_escaped_line_ends(step.regex->pattern()));
  }
  if (patterns.size() == std::size(kDeepSeekPatterns)) {
    for (size_t i = 0; i < patterns.size(); ++i)
      if (patterns[i] != with_escaped_line_ends(kDeepSeekPatterns[i])) return Split::kSteps;
    return Split::kDeepSeek;
  }
  if (patterns.size() != 1) return Split::kSteps;
  if (patterns[0] == kGpt2Pattern) return Split::kGpt2;
  if (patterns[0] == kLlama3Pattern) return Split::kLlama3;
  if (patterns[0] == kQwen2Pattern) return Split::kQwen2;
  if (patterns[0] == kO200kPattern) return Split::kO200k;
  return Split::kSteps;
}

bool BpeTokenizer::finds_split_points() const {
  for (const AddedToken& token : file_.added) {
    if (token.content.find('\n') != std::string::npos) return false;
    if (token.lstrip && !token.content.empty() &&
        ascii::kClasses[static_cast<unsigned char>(token.content[0])] == ascii::kLetter)
      return false;
  }
  if (!file_.normalizer.keeps_lines_apart()) return false;
  if (file_.byte_level) return split_ != Split::kSteps;
  const auto& steps = file_.pre_tokenizer.steps();
  const bool only_spaces = std::all_of(steps.begin(), steps.end(), [](const PreTokenizerStep& step) {
    return step.kind == PreTokenizerStep::Kind::kMetaspace;
  });
  const bool crosses = std::any_of(file_.merges.begin(), file_.merges.end(), [&](const Merge& merge) {
    const std::string& text = file_.tokens[static_cast<size_t>(merge.result)].text;
    return text.find('\n') < text.size() - 1 || text.find(fallback_of_byte('\n')) != std::string::npos;
  });
  return only_spaces && knows_line_ends() && !crosses && !file_.ignore_merges;
}

// What stands for a space, when it begins words and nothing else: no token that merging makes has it behind
// another character. Then merging never crosses such a begin, and a text that is not split any further can
// still be merged word by word.
std::string BpeTokenizer::find_word_begin() const {
  if (file_.byte_level || file_.ignore_merges) return "";
  std::string space = file_.normalizer.space_symbol();
  for (const PreTokenizerStep& step : file_.pre_tokenizer.steps())
    if (step.kind == PreTokenizerStep::Kind::kMetaspace) space = step.text;
  if (space.empty() || decode_utf8(space, 0).length != space.size() || !file_.ids.contains(space)) return "";
  for (const Merge& merge : file_.merges) {
    const std::string_view text = file_.tokens[static_cast<size_t>(merge.result)].text;
    for (size_t at = text.find(space, 1); at != std::string_view::npos; at = text.find(space, at + 1))
      if (!text.substr(0, at).ends_with(space)) return "";
  }
  return space;
}

// Whether merging leaves line ends alone, and what stands beside them too (an unknown character is written
// late: see symbols_of_characters).
bool BpeTokenizer::keeps_lines_apart() const {
  if (file_.byte_level || file_.ignore_merges || !knows_line_ends()) return false;
  return std::none_of(file_.merges.begin(), file_.merges.end(), [&](const Merge& merge) {
    const std::string& text = file_.tokens[static_cast<size_t>(merge.result)].text;
    return text.find('\n') != std::string::npos || text.find(fallback_of_byte('\n')) != std::string::npos;
  });
}

bool BpeTokenizer::knows_line_ends() const {
  const bool has_all_bytes =
      std::all_of(byte_ids_.begin(), byte_ids_.end(), [](int32_t id) { return id >= 0; });
  return file_.ids.contains("\n") || (file_.byte_fallback && has_all_bytes);
}

size_t BpeTokenizer::split_point(std::string_view text, size_t from) const {
  return splits_at_lines_ ? safe_cut(text, from, /*at_spaces=*/false) : text.size();
}

void BpeTokenizer::encode(std::string_view text, std::vector<int32_t>& ids) const {
  encode_text(text, /*continued=*/false, /*fast=*/true, ids);
}

void BpeTokenizer::encode_continued(std::string_view text, std::vector<int32_t>& ids) const {
  encode_text(text, /*continued=*/true, /*fast=*/true, ids);
}

std::vector<int32_t> BpeTokenizer::encode_by_steps(std::string_view text) const {
  std::vector<int32_t> ids;
  encode_text(text, /*continued=*/false, /*fast=*/false, ids);
  return ids;
}

void BpeTokenizer::encode_text(std::string_view text, bool continued, bool fast,
                               std::vector<int32_t>& ids) const {
  std::string valid;
  if (first_invalid_utf8(text) < text.size()) {
    valid = to_valid_utf8(text);
    text = valid;
  }
  const Lease lease(*this);
  Workspace& work = *lease;
  work.fast = fast;
  Sink out(ids);
  work.raw_parts.clear();
  raw_.split(text, work.raw_parts);
  for (const auto& [begin, end, id] : work.raw_parts) {
    if (id >= 0) {
      out.push(id);
    } else {
      encode_part(text.substr(begin, end - begin), {begin == 0, begin == 0 && continued}, work, out);
    }
  }
}

void BpeTokenizer::encode_part(std::string_view text, PieceOrigin origin, Workspace& work, Sink& out) const {
  if (!file_.normalizer.empty()) text = file_.normalizer.apply(text, origin.continued, work.normalized);
  if (normalized_.empty()) return encode_plain(text, origin, work, out);
  work.normalized_parts.clear();
  normalized_.split(text, work.normalized_parts);
  for (const auto& [begin, end, id] : work.normalized_parts) {
    if (id >= 0) {
      out.push(id);
    } else {
      const bool first = begin == 0;
      encode_plain(text.substr(begin, end - begin), {first && origin.text_begin, first && origin.continued},
                   work, out);
    }
  }
}

void BpeTokenizer::encode_plain(std::string_view text, PieceOrigin origin, Workspace& work, Sink& out) const {
  switch (work.fast ? split_ : Split::kSteps) {
    case Split::kSteps:
      return encode_steps(text, origin, work, out);
    case Split::kGpt2:
      return encode_ruled<Gpt2Rule>(text, work, out);
    case Split::kLlama3:
      return encode_ruled<Cl100kRule<3>>(text, work, out);
    case Split::kQwen2:
      return encode_ruled<Cl100kRule<1>>(text, work, out);
    case Split::kO200k:
      return encode_ruled<O200kRule>(text, work, out);
    case Split::kDeepSeek:
      return encode_ruled<DeepSeekRule>(text, work, out);
  }
}

void BpeTokenizer::encode_steps(std::string_view text, PieceOrigin origin, Workspace& work, Sink& out) const {
  file_.pre_tokenizer.apply(text, origin, work.pieces);
  for (std::string_view piece : work.pieces.views) {
    const char* const end = piece.data() + piece.size();
    for (size_t cut = next_cut(piece); cut < piece.size(); cut = next_cut(piece)) {
      encode_piece(piece.substr(0, cut), end - piece.data() >= 16, work, out);
      piece.remove_prefix(cut);
    }
    encode_piece(piece, /*readable=*/false, work, out);
  }
}

// Where merging can be cut behind the begin of `piece`, or piece.size(): before the begin of a word that has
// something else before it, and at both sides of a line end.
size_t BpeTokenizer::next_cut(std::string_view piece) const {
  if (word_begin_.empty() && !lines_apart_) return piece.size();
  if (lines_apart_ && piece[0] == '\n') return 1;
  for (size_t at = 1; at < piece.size(); ++at) {
    if (piece[at] == '\n' && lines_apart_) return at;
    if (!word_begin_.empty() && piece[at] == word_begin_[0] && piece.substr(at).starts_with(word_begin_) &&
        !piece.substr(0, at).ends_with(word_begin_))
      return at;
  }
  return piece.size();
}

template <class Rule>
void BpeTokenizer::encode_ruled(std::string_view text, Workspace& work, Sink& out) const {
  const auto& steps = file_.pre_tokenizer.steps();
  std::optional<RegexSearch> search;
  for (size_t at = 0; at < text.size();) {
    size_t end = Rule::next(text, at);
    if (end == kUndecided && steps.size() == 1) {
      if (!search) search.emplace(*steps[0].regex, text);
      end = search->match_at(at);
      MOEBIUS_CHECK(end != RegexSearch::kNone && end > at, "at byte ", at);
    } else if (end == kUndecided) {
      end = safe_cut(text, at + 1, /*at_spaces=*/true);
      encode_steps(text.substr(at, end - at), {}, work, out);
      at = end;
      continue;
    }
    encode_piece(text.substr(at, end - at), at + 16 <= text.size(), work, out);
    at = end;
  }
}

void BpeTokenizer::encode_piece(std::string_view piece, bool readable, Workspace& work, Sink& out) const {
  if (piece.size() == 1 && file_.byte_level) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(piece[0])];
    if (id >= 0) return out.push(id);
  }
  if (!work.fast) {
    encode_new_piece(piece, work);
    return out.append(work.symbols);
  }
  std::optional<PieceCache::Key> key;
  if (piece.size() <= PieceCache::kShortBytes) {
    key = PieceCache::key_of(piece, readable);
    if (const PieceCache::Ids* ids = work.cache.find(*key)) return out.append(*ids);
  }
  if (piece.size() > PieceCache::kLongBytes) {
    encode_new_piece(piece, work);
    return out.append(work.symbols);
  }
  std::span<const int32_t> ids;
  if (work.cache.find_long(piece, ids)) return out.append(ids);
  encode_new_piece(piece, work);
  if (key && work.symbols.size() <= PieceCache::kShortIds) {
    work.cache.insert(*key, work.symbols);
  } else if (work.symbols.size() <= PieceCache::kLongIds) {
    work.cache.insert_long(piece, work.symbols);
  }
  out.append(work.symbols);
}

void BpeTokenizer::encode_new_piece(std::string_view piece, Workspace& work) const {
  work.symbols.clear();
  if (file_.ignore_merges) {
    const auto whole = whole_pieces_.find(std::string(piece));
    if (whole != whole_pieces_.end()) {
      work.symbols.push_back(whole->second);
      return;
    }
  }
  if (file_.byte_level) {
    symbols_of_bytes(piece, work.symbols);
  } else {
    symbols_of_characters(piece, work.symbols);
  }
  merges_.merge(work.symbols, work.scratch);
}

void BpeTokenizer::symbols_of_bytes(std::string_view piece, std::vector<int32_t>& symbols) const {
  bool after_unknown = false;
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    if (id >= 0) {
      symbols.push_back(id);
    } else if (file_.unk_id >= 0 && !(after_unknown && file_.fuse_unk)) {
      symbols.push_back(file_.unk_id);
    }
    after_unknown = id < 0;
  }
}

void BpeTokenizer::symbols_of_characters(std::string_view piece, std::vector<int32_t>& symbols) const {
  // An unknown character is written only when a known one follows or the piece ends, as in the `tokenizers`
  // package: bytes that stand in for characters in between come before it.
  bool unknown = false;
  std::string character;
  for (size_t at = 0; at < piece.size();) {
    const size_t length = decode_utf8(piece, at).length;
    character.assign(piece, at, length);
    at += length;
    const auto found = file_.ids.find(character);
    if (found != file_.ids.end()) {
      if (unknown) symbols.push_back(file_.unk_id);
      unknown = false;
      symbols.push_back(found->second);
      continue;
    }
    const auto has_byte = [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; };
    if (file_.byte_fallback && std::all_of(character.begin(), character.end(), has_byte)) {
      for (const char c : character) symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    } else if (file_.unk_id >= 0) {
      if (unknown && !file_.fuse_unk) symbols.push_back(file_.unk_id);
      unknown = true;
    }
  }
  if (unknown) symbols.push_back(file_.unk_id);
}

}  // namespace moebius::data
