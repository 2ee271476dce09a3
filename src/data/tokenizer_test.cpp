#include "data/tokenizer.h"

#include <sentencepiece_processor.h>

#include "data/test_files.h"

namespace moebius::data {
namespace {

const char* const kMixedText =
    "First Citizen:\n\tBefore we proceed any further, hear me speak.  \n\nnaïve café — “quotes” 日本語 "
    "🙂\r\n  end ";

std::string text_for_training() {
  const std::string text = read_file(source_file("examples/data/tinyshakespeare.txt"));
  return text.substr(0, 60000);
}

std::shared_ptr<const Tokenizer> train_small(const TemporaryFolder& folder, const std::string& type) {
  TokenizerTraining training;
  training.files = {write_text(folder / "train.txt", text_for_training())};
  training.vocab = 600;
  training.type = type;
  training.out = folder / (type + ".model");
  train_sentencepiece(training);
  return load_sentencepiece(training.out);
}

std::string stream(const Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  StreamDecoder decoder(tokenizer);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

TEST(BytesTokenizer, is_the_identity_on_bytes_with_a_vocabulary_of_256) {
  const auto tokenizer = open_tokenizer("bytes");
  EXPECT_EQ(tokenizer->vocab_size(), 256);
  EXPECT_EQ(tokenizer->name(), "bytes");
  EXPECT_EQ(tokenizer->fingerprint(), "bytes-1");
  EXPECT_EQ(tokenizer->document_end_id(), -1);
  EXPECT_EQ(tokenizer->encode("aä\n"), (std::vector<int32_t>{97, 0xC3, 0xA4, 10}));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(kMixedText)), kMixedText);
}

TEST(StreamDecoder, never_cuts_a_character) {
  const auto tokenizer = make_bytes_tokenizer();
  StreamDecoder decoder(*tokenizer);
  std::vector<std::string> parts;
  for (const int32_t id : tokenizer->encode("é🙂x")) parts.push_back(decoder.push(id));
  EXPECT_EQ(parts, (std::vector<std::string>{"", "é", "", "", "", "🙂", "x"}));
  EXPECT_EQ(decoder.finish(), "");
  EXPECT_EQ(decoder.push(300), "\uFFFD") << "an id that only the model has";
}

TEST(StreamDecoder, replaces_bytes_that_cannot_become_a_character) {
  const auto tokenizer = make_bytes_tokenizer();
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.push(0xFF), "\uFFFD");
  EXPECT_EQ(decoder.push(0xF0), "");
  EXPECT_EQ(decoder.push('a'),
            "\uFFFD"
            "a");
  EXPECT_EQ(decoder.push(0xC3), "");
  EXPECT_EQ(decoder.finish(), "\uFFFD");
  EXPECT_EQ(decoder.finish(), "");
}

class TrainedModel : public testing::TestWithParam<const char*> {};

TEST_P(TrainedModel, keeps_any_text_byte_for_byte) {
  const TemporaryFolder folder;
  const auto tokenizer = train_small(folder, GetParam());
  EXPECT_EQ(tokenizer->vocab_size(), 600);
  EXPECT_EQ(tokenizer->document_end_id(), tokenizer->eos_id());
  EXPECT_GE(tokenizer->eos_id(), 0);
  EXPECT_FALSE(tokenizer->has_dummy_prefix());
  EXPECT_TRUE(tokenizer->separable_at_newlines());
  for (const std::string text : {kMixedText, "", " ", "\n", "<s></s><unk><0x0A>", "a  b"}) {
    const auto ids = tokenizer->encode(text);
    EXPECT_EQ(tokenizer->decode(ids), text);
    EXPECT_EQ(stream(*tokenizer, ids), text);
  }
  const std::string text = text_for_training();
  const auto ids = tokenizer->encode(text);
  EXPECT_LT(ids.size(), text.size() * 6 / 10) << "it learnt to join bytes";
  EXPECT_EQ(tokenizer->decode(ids), text);
}

TEST_P(TrainedModel, is_the_same_each_time) {
  const TemporaryFolder first, second;
  EXPECT_EQ(train_small(first, GetParam())->fingerprint(), train_small(second, GetParam())->fingerprint());
}

INSTANTIATE_TEST_SUITE_P(Types, TrainedModel, testing::Values("bpe", "unigram"),
                         [](const auto& info) { return std::string(info.param); });

TEST(SentencePiece, foreign_model_decodes_as_its_own_library_does) {
  const auto path = source_file("tests/data/sentencepiece-test_model.model");
  const auto tokenizer = load_sentencepiece(path);
  sentencepiece::SentencePieceProcessor reference;
  ASSERT_TRUE(reference.Load(path.string()).ok());
  EXPECT_EQ(tokenizer->vocab_size(), 1000);
  EXPECT_TRUE(tokenizer->has_dummy_prefix());
  EXPECT_FALSE(tokenizer->separable_at_newlines()) << "it turns line feeds into spaces";
  for (const std::string text : {"Hello world.", "I saw a girl with a telescope.", "a"}) {
    const std::vector<int> ids = reference.EncodeAsIds(text);
    EXPECT_EQ(tokenizer->encode(text), ids);
    EXPECT_EQ(tokenizer->decode(ids), reference.DecodeIds(ids));
    EXPECT_EQ(stream(*tokenizer, ids), text);
  }
  EXPECT_EQ(tokenizer->token_bytes(tokenizer->eos_id()), "");
}

TEST(SentencePiece, a_continued_text_keeps_its_leading_space) {
  const auto tokenizer = load_sentencepiece(source_file("tests/data/sentencepiece-test_model.model"));
  const auto ids = tokenizer->encode("world");
  StreamDecoder decoder(*tokenizer, /*continues=*/true);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  EXPECT_EQ(text + decoder.finish(), " world");
}

TEST(SentencePiece, user_errors_name_the_file_and_the_way_out) {
  const TemporaryFolder folder;
  const auto message = [](const std::filesystem::path& path) {
    return user_error([&] { open_tokenizer(path.string()); });
  };
  const std::string missing = folder / "no.model";
  EXPECT_EQ(message(missing),
            "tokenizer '" + missing +
                "': there is no such file; give 'bytes' or the path of a SentencePiece .model "
                "(moebius data tokenizer --train makes one) or of a tokenizer.json");
  const auto empty = write_text(folder / "empty.model", "");
  EXPECT_EQ(message(empty), "tokenizer " + empty.string() +
                                " is empty; it may be a broken download: fetch or train it again");
  const auto text = write_text(folder / "text.model", "not a model at all");
  EXPECT_EQ(message(text),
            "tokenizer " + text.string() +
                " is not a SentencePiece model; give 'bytes', a .model file (moebius data tokenizer "
                "--train makes one) or a tokenizer.json");
  const auto json = write_text(folder / "json.model", "{\"model\": {}}");
  EXPECT_EQ(message(json),
            "tokenizer " + json.string() +
                " is not a SentencePiece model but JSON (a tokenizer.json of Hugging Face needs the ending "
                ".json); give 'bytes', a .model file (moebius data tokenizer --train makes one) or a "
                "tokenizer.json");
  const std::string model = read_file(source_file("tests/data/sentencepiece-test_model.model"));
  const auto cut = write_text(folder / "cut.model", model.substr(0, model.size() / 2));
  EXPECT_EQ(message(cut),
            "tokenizer " + cut.string() +
                " is not a SentencePiece model; give 'bytes', a .model file (moebius data tokenizer "
                "--train makes one) or a tokenizer.json");
}

TEST(SentencePiece, training_errors_say_which_vocabulary_would_do) {
  const TemporaryFolder folder;
  TokenizerTraining training;
  training.files = {write_text(folder / "t.txt", "a few words, and a few more words\nof text\n")};
  training.out = folder / "t.model";
  training.vocab = 5000;
  EXPECT_EQ(user_error([&] { train_sentencepiece(training); }),
            "--vocab is 5000, but this text has pieces for at most 309; lower --vocab or give more text");
  training.vocab = 100;
  EXPECT_EQ(user_error([&] { train_sentencepiece(training); }),
            "--vocab is 100, but 256 bytes, 3 special tokens and the characters of this text need 273; raise "
            "--vocab "
            "above that");
  EXPECT_FALSE(std::filesystem::exists(training.out));
  training.vocab = 280;
  train_sentencepiece(training);
  EXPECT_EQ(user_error([&] { train_sentencepiece(training); }),
            training.out.string() + " exists already; give another --out, or --overwrite");
  training.files = {write_text(folder / "n.txt", "\n\n")};
  training.overwrite = true;
  EXPECT_EQ(user_error([&] { train_sentencepiece(training); }),
            (folder / "n.txt").string() + ": there is no line with text to train on");
}

}  // namespace
}  // namespace moebius::data
