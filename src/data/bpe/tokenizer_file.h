// The contents of a tokenizer.json (Hugging Face `tokenizers`, format version 1.0), checked.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "data/bpe/added_tokens.h"
#include "data/bpe/merge_table.h"
#include "data/bpe/normalizer.h"
#include "data/bpe/pre_tokenizer.h"

namespace moebius::data {

class JsonField;

// What decoding does to tokens, as far as it says what a token stands for.
struct DecoderSteps {
  bool byte_level = false;     // tokens are written in the alphabet of bytes
  bool byte_fallback = false;  // <0x0A> is a byte
  std::vector<std::pair<std::string, std::string>> replacements;
  bool strips_space = false;  // a space at the begin of a text is taken away
};

struct TokenizerFile {
  struct Token {
    std::string text;
    bool known = false;  // false: an id that nothing has
  };

  std::vector<Token> tokens;  // of model.vocab, by id
  std::unordered_map<std::string, int32_t> ids;
  std::vector<Merge> merges;
  bool ignore_merges = false, byte_fallback = false, fuse_unk = false;
  int32_t unk_id = -1;

  std::vector<AddedToken> added;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  bool byte_level = false;  // the last step of the pre-tokenizer is ByteLevel: symbols are bytes
  DecoderSteps decoder;
  std::vector<int32_t> prefix, suffix;  // what the post-processor puts around one text

  // 1 + the highest id.
  int64_t vocab_size() const;
  // The id of a token of the vocabulary or of an added one; -1 when there is none.
  int32_t id_of(const std::string& token) const;
};

// UserError naming file, field and value for JSON that is damaged or of another form, ids that are negative,
// huge or given twice, merges of absent tokens, and every component that is not supported.
TokenizerFile parse_tokenizer_file(const std::string& json, const std::filesystem::path& path);

// The parts that are lists of steps (tokenizer_steps.cpp).
Normalizer read_normalizer(const JsonField& field);
// `byte_level` says whether the last step was ByteLevel.
PreTokenizer read_pre_tokenizer(const JsonField& field, bool& byte_level);
DecoderSteps read_decoder(const JsonField& field);
void read_post_processor(const JsonField& field, TokenizerFile& file);

// The bytes of a text in GPT-2's alphabet of bytes (a printable character for each byte value): false when it
// has other characters.
bool bytes_of_alphabet(std::string_view text, std::string& bytes);
std::string alphabet_of_byte(uint8_t byte);

}  // namespace moebius::data
