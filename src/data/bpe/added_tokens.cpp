#include "data/bpe/added_tokens.h"

#include <algorithm>
#include <cstring>

#include "data/bpe/unicode.h"

namespace moebius::data {
namespace {

// \w of the `regex` crate, which decides about single words.
bool is_word_character(uint32_t code) {
  static const CharSet set = [] {
    CharSet word =
        CharSet::of_categories(kLetters | kMarks | categories({Category::Nd, Category::Nl, Category::Pc}));
    for (const auto& [first, last] : std::initializer_list<std::pair<uint32_t, uint32_t>>{
             {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}, {0x200C, 0x200D}})
      word.add(CharSet::of_range(first, last));
    return word;
  }();
  return set.contains(code);
}

bool ends_with_word(std::string_view text) {
  return !text.empty() &&
         is_word_character(decode_utf8(text, text.size() - length_before(text, text.size())).code);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word_character(decode_utf8(text, 0).code);
}

size_t white_space_from(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Decoded c = decode_utf8(text, at);
    if (!is_white_space(c.code)) break;
    at += c.length;
  }
  return at;
}

size_t white_space_before(std::string_view text, size_t at) {
  while (at > 0) {
    const size_t length = length_before(text, at);
    if (!is_white_space(decode_utf8(text, at - length).code)) break;
    at -= length;
  }
  return at;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  const auto less = [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; };
  std::stable_sort(tokens_.begin(), tokens_.end(), less);
  const auto same = [](const AddedToken& a, const AddedToken& b) { return a.content == b.content; };
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end(), same), tokens_.end());
  pairs_.resize(1 << 16);
  for (const AddedToken& token : tokens_) {
    const auto first = static_cast<unsigned char>(token.content[0]);
    begins_[first] = true;
    if (token.content.size() == 1) {
      for (size_t second = 0; second < 256; ++second) pairs_[first << 8 | second] = true;
    } else {
      pairs_[first << 8 | static_cast<unsigned char>(token.content[1])] = true;
    }
  }
  if (std::count(begins_.begin(), begins_.end(), true) == 1) only_begin_ = tokens_[0].content[0];
}

size_t AddedTokenMatcher::next_candidate(std::string_view text, size_t at) const {
  if (!only_begin_.empty()) {
    if (at >= text.size()) return text.size();
    const void* found = std::memchr(text.data() + at, only_begin_[0], text.size() - at);
    return found ? static_cast<size_t>(static_cast<const char*>(found) - text.data()) : text.size();
  }
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  for (; at + 1 < text.size(); ++at)
    if (begins_[byte(at)] && pairs_[byte(at) << 8 | byte(at + 1)]) return at;
  return at;
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t at) const {
  // All tokens in [low, high) share their first `length` bytes with the text.
  size_t low = 0, high = tokens_.size();
  const AddedToken* longest = nullptr;
  for (size_t length = 0; low < high && at + length <= text.size(); ++length) {
    if (tokens_[low].content.size() == length) {
      longest = &tokens_[low];
      ++low;
    }
    if (at + length == text.size()) break;
    const auto wanted = static_cast<unsigned char>(text[at + length]);
    const auto byte = [&](const AddedToken& token) {
      return static_cast<unsigned char>(token.content[length]);
    };
    const auto begin = tokens_.begin() + static_cast<std::ptrdiff_t>(low);
    const auto end = tokens_.begin() + static_cast<std::ptrdiff_t>(high);
    const auto first =
        std::partition_point(begin, end, [&](const AddedToken& t) { return byte(t) < wanted; });
    const auto last =
        std::partition_point(first, end, [&](const AddedToken& t) { return byte(t) == wanted; });
    low = static_cast<size_t>(first - tokens_.begin());
    high = static_cast<size_t>(last - tokens_.begin());
  }
  return longest;
}

void AddedTokenMatcher::split(std::string_view text, std::vector<Part>& parts) const {
  size_t done = 0;
  if (!tokens_.empty()) {
    for (size_t at = next_candidate(text, 0); at < text.size(); at = next_candidate(text, at)) {
      const AddedToken* token = longest_at(text, at);
      if (token == nullptr) {
        ++at;
        continue;
      }
      size_t begin = at, end = at + token->content.size();
      at = end;
      if (token->single_word && (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end))))
        continue;
      if (token->lstrip) begin = std::max(white_space_before(text, begin), done);
      if (token->rstrip) end = white_space_from(text, end);
      if (done < begin) parts.push_back({done, begin, -1});
      parts.push_back({begin, end, token->id});
      done = end;
    }
  }
  if (done < text.size()) parts.push_back({done, text.size(), -1});
}

}  // namespace moebius::data
