// A tokenizer from a tokenizer.json: added tokens, normalisation, splitting, byte-pair merging.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "data/bpe/merge_table.h"
#include "data/bpe/tokenizer_file.h"
#include "data/tokenizer.h"

namespace moebius::data {

class BpeTokenizer : public Tokenizer {
 public:
  struct Identity {
    std::string name, fingerprint;
    int32_t bos_id = -1, eos_id = -1;
  };
  BpeTokenizer(TokenizerFile file, Identity identity);
  ~BpeTokenizer() override;

  using Tokenizer::encode;
  // Gives the ids of the `tokenizers` package without its post-processor. Bytes that are not UTF-8 count as
  // U+FFFD.
  void encode(std::string_view text, std::vector<int32_t>& ids) const override;
  void encode_continued(std::string_view text, std::vector<int32_t>& ids) const override;
  bool separable_at_newlines() const override { return false; }
  size_t split_point(std::string_view text, size_t from) const override;

  // Whether the split pattern has a rule in data/bpe/known_patterns.h.
  bool has_fast_split() const { return split_ != Split::kSteps; }
  // Encodes without those rules and without remembering pieces: for tests.
  std::vector<int32_t> encode_by_steps(std::string_view text) const;

 private:
  enum class Split { kSteps, kGpt2, kLlama3, kQwen2, kO200k, kDeepSeek };
  struct Workspace;  // what one thread needs to encode
  class Lease;
  class Sink;

  void encode_text(std::string_view text, bool continued, bool fast, std::vector<int32_t>& ids) const;
  void encode_part(std::string_view text, PieceOrigin origin, Workspace& work, Sink& out) const;
  void encode_plain(std::string_view text, PieceOrigin origin, Workspace& work, Sink& out) const;
  void encode_steps(std::string_view text, PieceOrigin origin, Workspace& work, Sink& out) const;
  template <class Rule>
  void encode_ruled(std::string_view text, Workspace& work, Sink& out) const;
  void encode_piece(std::string_view piece, bool readable, Workspace& work, Sink& out) const;
  void encode_new_piece(std::string_view piece, Workspace& work) const;
  void symbols_of_bytes(std::string_view piece, std::vector<int32_t>& symbols) const;
  void symbols_of_characters(std::string_view piece, std::vector<int32_t>& symbols) const;

  void add_tokens();
  Split recognise_split() const;
  bool finds_split_points() const;
  std::string find_word_begin() const;
  bool keeps_lines_apart() const;
  bool knows_line_ends() const;
  size_t next_cut(std::string_view piece) const;

  TokenizerFile file_;  // without what moves into the members below
  AddedTokenMatcher raw_, normalized_;
  MergeTable merges_;
  Split split_ = Split::kSteps;
  std::array<int32_t, 256> byte_ids_;  // byte level: of each byte; byte fallback: of <0x00> … <0xFF>
  std::unordered_map<std::string, int32_t> whole_pieces_;  // with ignore_merges: tokens by their bytes
  std::string word_begin_;    // not empty: merging never crosses the begin of this text behind another one
  bool lines_apart_ = false;  // merging never joins a line end with anything
  bool splits_at_lines_ = false;

  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Workspace>> idle_;
};

}  // namespace moebius::data
