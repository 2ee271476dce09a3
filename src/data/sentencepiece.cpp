// The only file that sees libsentencepiece. The distribution's library carries (or links) protobuf-lite with
// visible symbols; libtorch hides its own copy. Of the symbols that both define, only inline templates are
// left (compared with nm for torch 2.11.0 and SentencePiece 0.1.97), so both can live in one process.
#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <charconv>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "data/checksum.h"
#include "data/text.h"
#include "data/tokenizer.h"

namespace moebius::data {
namespace {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, how SentencePiece writes a space

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t i = 0; i < piece.size();) {
    if (piece.substr(i).starts_with(kSpaceSymbol)) {
      text += ' ';
      i += kSpaceSymbol.size();
    } else {
      text += piece[i++];
    }
  }
  return text;
}

// "<0x0A>" -> "\n"
std::string byte_of_piece(const std::string& piece) {
  unsigned value = 256;
  if (piece.size() == 6) std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  MOEBIUS_CHECK(value < 256, "byte piece '", piece, "'");
  return std::string(1, static_cast<char>(value));
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& path, const std::string& model) {
    const auto status = processor_.LoadFromSerializedProto(model);
    if (!status.ok()) {
      throw_user_error(
          "tokenizer ", path.string(), " is not a SentencePiece model",
          model.starts_with('{') ? " but JSON (a tokenizer.json of Hugging Face needs the ending .json)" : "",
          "; give 'bytes', a .model file (moebius data tokenizer --train makes one) or a tokenizer.json");
    }
    name_ = path.filename().string();
    fingerprint_ = checksum_of(model);
    bos_id_ = processor_.bos_id();
    eos_id_ = processor_.eos_id();
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      const std::string& piece = processor_.IdToPiece(id);
      if (processor_.IsControl(id)) {
        add_token("");
      } else if (processor_.IsUnknown(id)) {
        add_token(processor_.DecodeIds({id}));
      } else if (processor_.IsByte(id)) {
        add_token(byte_of_piece(piece));
      } else {
        add_token(with_spaces(piece));
        if (piece.size() > 1 && piece.find('\n') != std::string::npos) newline_inside_ = true;
      }
    }
    const auto pieces = processor_.EncodeAsPieces("a");
    has_dummy_prefix_ = !pieces.empty() && std::string_view(pieces.front()).starts_with(kSpaceSymbol);
    num_newline_ids_ = encode("\n").size();
    separable_ = !newline_inside_ && separates(" a \n", "\n") && separates(" a \n", "  b c  ") &&
                 separates("\n", " \t");
  }

  using Tokenizer::encode;
  void encode(std::string_view text, std::vector<int32_t>& ids) const override {
    std::vector<int> out;
    const auto status = processor_.Encode(text, &out);
    MOEBIUS_CHECK(status.ok(), status.ToString());
    ids.insert(ids.end(), out.begin(), out.end());
  }

  bool separable_at_newlines() const override { return separable_; }
  void encode_continued(std::string_view text, std::vector<int32_t>& ids) const override {
    if (!has_dummy_prefix_) return encode(text, ids);
    const std::vector<int32_t> all = encode("\n" + std::string(text));  // the prefix goes to the line feed
    ids.insert(ids.end(), all.begin() + num_newline_ids_, all.end());
  }

 private:
  // Whether normalisation leaves the two halves alone: no trimming, the line feed kept.
  bool separates(const std::string& a, const std::string& b) const {
    std::vector<int32_t> parts = encode(a);
    if (encode("\n" + b).size() < num_newline_ids_) return false;
    encode_continued(b, parts);
    return encode(a + b) == parts && decode(parts) == a + b;
  }

  sentencepiece::SentencePieceProcessor processor_;
  bool newline_inside_ = false;
  size_t num_newline_ids_ = 0;  // of a text that is one line feed
  bool separable_ = false;
};

// Hands the lines of several texts to the trainer.
class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(std::vector<std::string> texts) : texts_(std::move(texts)) { Next(); }
  bool done() const override { return done_; }
  const std::string& value() const override { return line_; }
  sentencepiece::util::Status status() const override { return {}; }
  void Next() override {
    while (file_ < texts_.size()) {
      const std::string& text = texts_[file_];
      if (at_ >= text.size()) {
        ++file_;
        at_ = 0;
        continue;
      }
      const size_t end = std::min(text.find('\n', at_), text.size());
      line_.assign(text, at_, end - at_);
      at_ = end + 1;
      if (!line_.empty()) return;
    }
    done_ = true;
  }

 private:
  std::vector<std::string> texts_;
  size_t file_ = 0, at_ = 0;
  std::string line_;
  bool done_ = false;
};

// The number after `marker` in a message of the trainer, or "".
std::string number_after(const std::string& message, std::string_view marker) {
  const size_t at = message.find(marker);
  if (at == std::string::npos) return "";
  const size_t begin = at + marker.size();
  return message.substr(begin, message.find_first_not_of("0123456789", begin) - begin);
}

[[noreturn]] void training_failed(int64_t vocab, const std::string& message) {
  if (const std::string most = number_after(message, "value <= "); !most.empty()) {
    throw_user_error("--vocab is ", vocab, ", but this text has pieces for at most ", most,
                     "; lower --vocab or give more text");
  }
  if (const std::string least = number_after(message, " vs "); !least.empty()) {
    throw_user_error("--vocab is ", vocab,
                     ", but 256 bytes, 3 special tokens and the characters of this text need ", least,
                     "; raise --vocab above that");
  }
  throw_user_error("SentencePiece could not train on this text: ", message);
}

}  // namespace

std::shared_ptr<const Tokenizer> load_sentencepiece(const std::filesystem::path& path) {
  if (!std::filesystem::is_regular_file(path)) {
    throw_user_error(
        "tokenizer '", path.string(),
        "': there is no such file; give 'bytes' or the path of a "
        "SentencePiece .model (moebius data tokenizer --train makes one) or of a tokenizer.json");
  }
  const std::string model = read_file(path);
  if (model.empty()) {
    throw_user_error("tokenizer ", path.string(),
                     " is empty; it may be a broken download: fetch or train it again");
  }
  return std::make_shared<const SentencePieceTokenizer>(path, model);
}

void train_sentencepiece(const TokenizerTraining& training) {
  if (!training.overwrite && std::filesystem::exists(training.out)) {
    throw_user_error(training.out.string(), " exists already; give another --out, or --overwrite");
  }
  std::vector<std::string> texts;
  for (const auto& file : training.files) {
    texts.push_back(read_file(file));
    check_text(texts.back(), file.string());
  }
  Lines lines(std::move(texts));
  if (lines.done())
    throw_user_error(training.files.front().string(), ": there is no line with text to train on");
  std::string model;
  const auto status = sentencepiece::SentencePieceTrainer::Train(
      {{"vocab_size", std::to_string(training.vocab)},
       {"model_type", training.type},
       {"normalization_rule_name", "identity"},
       {"remove_extra_whitespaces", "false"},
       {"add_dummy_prefix", "false"},
       {"allow_whitespace_only_pieces", "true"},
       {"byte_fallback", "true"},
       {"split_digits", "true"},
       {"max_sentence_length", "1000000000"},
       {"num_threads", "1"},  // the result must not depend on the machine
       {"minloglevel", "2"}},
      &lines, &model);
  if (!status.ok()) training_failed(training.vocab, status.ToString());
  write_file_atomic(training.out, model);
}

}  // namespace moebius::data
