// Text to token ids and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::data {

// A tokenizer is immutable after construction; every member function may be called from several threads at
// once.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // "bytes", or the file name of the model.
  const std::string& name() const { return name_; }
  // Equal fingerprints mean equal vocabularies and equal encodings ("bytes-1", "xxh3-64:…" of the model
  // file).
  const std::string& fingerprint() const { return fingerprint_; }
  int64_t vocab_size() const { return static_cast<int64_t>(offsets_.size()) - 1; }

  // Ids of special tokens; -1 when the vocabulary has none.
  int32_t bos_id() const { return bos_id_; }
  int32_t eos_id() const { return eos_id_; }
  // Written after each document of a corpus: eos where the vocabulary has one. Byte vocabularies have none:
  // the index of the corpus marks the borders, attention does not cross them, and the vocabulary stays 256.
  int32_t document_end_id() const { return eos_id_; }

  // What the tokenizer's own template puts before and behind one text (begin and end of text); empty for
  // most.
  std::span<const int32_t> prefix_ids() const { return prefix_ids_; }
  std::span<const int32_t> suffix_ids() const { return suffix_ids_; }

  // Appends the ids of `text` (well-formed UTF-8) to `ids`; adds no special tokens. A tokenizer.json
  // recognises the text of its special tokens inside `text`; the others do not.
  virtual void encode(std::string_view text, std::vector<int32_t>& ids) const = 0;
  enum class Special { kNone, kTemplate };
  // kTemplate: between prefix_ids() and suffix_ids().
  std::vector<int32_t> encode(std::string_view text, Special special = Special::kNone) const;

  // True when encode(a + b) == encode(a) + encode_continued(b) for every a that ends with a line feed, so
  // that long texts may be encoded in parts, in parallel.
  virtual bool separable_at_newlines() const = 0;
  // The first place p >= from that is known to have encode(text) == encode(first p bytes) +
  // encode_continued(rest); text.size() when there is none.
  virtual size_t split_point(std::string_view text, size_t from) const;
  // Appends the ids that `text` has after another text that ended at a split point: as encode, but without a
  // dummy prefix.
  virtual void encode_continued(std::string_view text, std::vector<int32_t>& ids) const { encode(text, ids); }

  // The text of `ids`, byte for byte (byte pieces give their byte, special tokens nothing), which need not be
  // well-formed UTF-8: see StreamDecoder and to_valid_utf8.
  std::string decode(std::span<const int32_t> ids) const;

  // What one token stands for inside a text; empty for special tokens. Ids from vocab_size() on, which a
  // model with more rows than the tokenizer has tokens can produce, stand for U+FFFD.
  std::string_view token_bytes(int32_t id) const;

  // True when encoding puts a space before the text that decoding takes away again (SentencePiece's dummy
  // prefix).
  bool has_dummy_prefix() const { return has_dummy_prefix_; }

 protected:
  Tokenizer() : offsets_{0} {}
  void add_token(std::string_view bytes);

  std::string name_, fingerprint_;
  int32_t bos_id_ = -1, eos_id_ = -1;
  std::vector<int32_t> prefix_ids_, suffix_ids_;
  bool has_dummy_prefix_ = false;

 private:
  std::string bytes_;             // token_bytes of all ids, one after the other
  std::vector<int64_t> offsets_;  // vocab_size + 1
};

// Decodes token by token for display: push() returns the text that has become certain, always whole
// well-formed characters. Bytes that can no longer become a character come out as U+FFFD. Keeps a reference
// to the tokenizer.
class StreamDecoder {
 public:
  // `continues`: the tokens continue a text that is already there (a prompt), so a leading space is kept.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool continues = false);

  std::string push(int32_t id);
  // Whatever is left; an unfinished character becomes U+FFFD.
  std::string finish();

 private:
  const Tokenizer& tokenizer_;
  bool drop_space_;
  std::string pending_;
};

// One token per byte: vocabulary 256, id = byte value, no special tokens.
std::shared_ptr<const Tokenizer> make_bytes_tokenizer();

// Reads a SentencePiece model (Kudo and Richardson 2018). UserError when the file is missing, empty or not a
// model.
std::shared_ptr<const Tokenizer> load_sentencepiece(const std::filesystem::path& path);

// Reads a tokenizer.json of Hugging Face `tokenizers` with a BPE model; bos and eos are those of a
// tokenizer_config.json or special_tokens_map.json beside it, else of its template. Gives the ids of that
// package (docs/tokenizers.md). UserError naming file, field and value for what is damaged or not supported.
std::shared_ptr<const Tokenizer> load_tokenizer_json(const std::filesystem::path& path);

// `spec` as in data.tokenizer: "bytes", or the path of a SentencePiece .model or of a tokenizer.json.
std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& spec);

// Files that belong to the tokenizer file of `spec` and stand beside it, as far as they exist: what says
// where texts begin and end, and chat templates.
std::vector<std::filesystem::path> companions_of(const std::string& spec);

struct TokenizerTraining {
  std::vector<std::filesystem::path> files;
  int64_t vocab = 4096;
  std::string type = "bpe";  // bpe | unigram
  std::filesystem::path out;
  bool overwrite = false;
};

// Trains a SentencePiece model line by line on the files and writes it to `out` (atomically). The model keeps
// text exactly: identity normalisation, white space kept, no dummy prefix, bytes for characters it has not
// learnt; line feeds are always a token of their own. UserError for bad text, a vocabulary that the text is
// too small or too large for, and an `out` that exists (unless overwrite).
void train_sentencepiece(const TokenizerTraining& training);

}  // namespace moebius::data
