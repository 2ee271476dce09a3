#include "data/bpe/tokenizer_file.h"

#include <nlohmann/json.hpp>
#include <random>

#include "data/bpe/bpe_tokenizer.h"
#include "data/test_files.h"
#include "data/tokenizer.h"

namespace moebius::data {
namespace {

using nlohmann::json;

json small() {
  return json::parse(R"({"version": "1.0",
    "added_tokens": [{"id": 5, "content": "<end>", "special": true}],
    "normalizer": null, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "post_processor": null, "decoder": {"type": "ByteLevel"},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4},
              "merges": ["a b", ["ab", "c"]]}})");
}

std::string error_of(const std::string& text) {
  return user_error([&] { parse_tokenizer_file(text, "t.json"); });
}

// The message for `small()` with the value at `pointer` replaced.
std::string error_with(const std::string& pointer, const json& value) {
  json changed = small();
  changed[json::json_pointer(pointer)] = value;
  return error_of(changed.dump());
}

TEST(TokenizerFile, reads_vocabulary_merges_and_added_tokens) {
  const TokenizerFile file = parse_tokenizer_file(small().dump(), "t.json");
  EXPECT_EQ(file.vocab_size(), 6);
  EXPECT_EQ(file.merges.size(), 2u);
  EXPECT_EQ(file.merges[1].result, 4);
  EXPECT_TRUE(file.byte_level);
  EXPECT_EQ(file.id_of("<end>"), 5);
  EXPECT_EQ(file.id_of("abc"), 4);
  EXPECT_EQ(file.id_of("x"), -1);
}

TEST(TokenizerFile, damaged_json_is_refused_with_the_place) {
  const std::string text = small().dump();
  const std::string cut = error_of(text.substr(0, 100));
  EXPECT_TRUE(cut.starts_with("tokenizer t.json is not JSON: parse error at line 1, column 101: ")) << cut;
  EXPECT_TRUE(cut.ends_with("; it may be a broken download: fetch it again")) << cut;
  EXPECT_EQ(error_of("[]"), "tokenizer t.json: the file is a list of 0 elements, expected an object");
  EXPECT_EQ(error_of("{}"),
            "tokenizer t.json: model is missing; it may be a broken download, or no such file");
  for (size_t length = 0; length < text.size(); length += 7)
    EXPECT_NE(error_of(text.substr(0, length)), "no error") << length;
  EXPECT_NE(error_of("{\"model\": \"\xFF\"}"), "no error");
}

TEST(TokenizerFile, ids_are_checked) {
  EXPECT_EQ(error_with("/model/vocab/b", -1),
            "tokenizer t.json: model.vocab[\"b\"] is -1, expected an integer from 0 to 4194303");
  EXPECT_EQ(error_with("/model/vocab/b", 1ull << 63),
            "tokenizer t.json: model.vocab[\"b\"] is 9223372036854775808, expected an integer from 0 to "
            "4194303");
  EXPECT_EQ(error_with("/model/vocab/b", "1"),
            "tokenizer t.json: model.vocab[\"b\"] is \"1\", expected an integer from 0 to 4194303");
  EXPECT_TRUE(error_with("/model/vocab/b", 4000000)
                  .starts_with("tokenizer t.json: model.vocab[\"b\"] is 4000000, but there are only "));
  EXPECT_EQ(error_with("/model/vocab/b", 0),
            "tokenizer t.json: model.vocab[\"b\"] is 0, which \"a\" has already");
  EXPECT_EQ(error_with("/added_tokens/0/id", 2),
            "tokenizer t.json: added_tokens[0].id is 2, which is \"c\" in model.vocab");
  EXPECT_EQ(error_with("/added_tokens/0/content", "abc"),
            "tokenizer t.json: added_tokens[0].id is 5, but \"abc\" is 4 in model.vocab");
  json twice = small();
  twice["added_tokens"].push_back({{"id", 5}, {"content", "<other>"}});
  EXPECT_EQ(error_of(twice.dump()), "tokenizer t.json: added_tokens[1].id is 5, which \"<end>\" has already");
  std::string text = small().dump();
  text.replace(text.find("\"b\":1"), 5, "\"a\":1");
  EXPECT_EQ(error_of(text), "tokenizer t.json: the key \"a\" occurs twice in model.vocab");
}

TEST(TokenizerFile, merges_are_checked) {
  EXPECT_EQ(error_with("/model/merges/0", "a x"),
            "tokenizer t.json: model.merges[0] is \"a x\", but model.vocab has no token \"x\"");
  EXPECT_EQ(error_with("/model/merges/0", "b a"),
            "tokenizer t.json: model.merges[0] is \"b a\", but model.vocab has no token \"ba\"");
  EXPECT_EQ(error_with("/model/merges/0", "ab"),
            "tokenizer t.json: model.merges[0] is \"ab\", expected two tokens with one space between them");
  EXPECT_EQ(error_with("/model/merges/0", json::array({"a"})),
            "tokenizer t.json: model.merges[0] is a list of 1 elements, expected two tokens");
  EXPECT_EQ(error_with("/model/merges", 3), "tokenizer t.json: model.merges is 3, expected a list");
}

TEST(TokenizerFile, what_is_not_supported_is_named) {
  EXPECT_EQ(error_with("/model/type", "WordPiece"),
            "tokenizer t.json: model.type is \"WordPiece\", but only BPE models are supported; a "
            "SentencePiece .model can be given as it is");
  EXPECT_EQ(error_with("/normalizer", {{"type", "Lowercase"}}),
            "tokenizer t.json: normalizer.type is \"Lowercase\", which is not supported; supported are NFC, "
            "Prepend, Replace and Sequence");
  EXPECT_EQ(error_with("/pre_tokenizer", {{"type", "Whitespace"}}),
            "tokenizer t.json: pre_tokenizer.type is \"Whitespace\", which is not supported; supported are "
            "Split, Digits, Metaspace, ByteLevel and Sequence");
  EXPECT_EQ(error_with("/decoder", {{"type", "WordPiece"}}),
            "tokenizer t.json: decoder.type is \"WordPiece\", which is not supported; supported are "
            "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace and Sequence");
  EXPECT_EQ(error_with("/post_processor", {{"type", "Other"}}),
            "tokenizer t.json: post_processor.type is \"Other\", which is not supported; supported are "
            "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel and Sequence");
  EXPECT_EQ(error_with("/model/dropout", 0.1),
            "tokenizer t.json: model.dropout is 0.1, but merges are not dropped at random here; remove it "
            "from the file");
  EXPECT_EQ(error_with("/model/end_of_word_suffix", "</w>"),
            "tokenizer t.json: model.end_of_word_suffix is \"</w>\", which is not supported");
  EXPECT_EQ(error_with("/model/unk_token", "<unk>"),
            "tokenizer t.json: model.unk_token is \"<unk>\", but model.vocab has no such token");
  const json split = {{"type", "Split"}, {"pattern", {{"Regex", "\\p{Han}+"}}}, {"behavior", "Isolated"}};
  EXPECT_EQ(error_with("/pre_tokenizer", split),
            "tokenizer t.json: pre_tokenizer.pattern: the regular expression '\\p{Han}+' cannot be used: the "
            "property \\p{Han} is not known; general categories such as L, Lu or Nd are (at byte 3)");
  json odd = split;
  odd["behavior"] = "Sideways";
  odd["pattern"] = {{"String", "x"}};
  EXPECT_EQ(error_with("/pre_tokenizer", odd),
            "tokenizer t.json: pre_tokenizer.behavior is \"Sideways\", expected Removed, Isolated, "
            "MergedWithPrevious, MergedWithNext or Contiguous");
  EXPECT_EQ(
      error_with("/pre_tokenizer",
                 {{"type", "Sequence"}, {"pretokenizers", {{{"type", "ByteLevel"}}, {{"type", "Digits"}}}}}),
      "tokenizer t.json: pre_tokenizer.pretokenizers[1] is an object of 1 members, but nothing can come "
      "after ByteLevel");
}

// Any change of single bytes gives a tokenizer or a UserError, never anything else.
TEST(TokenizerFile, damaged_files_are_refused_or_read) {
  std::mt19937 random(17);
  for (const char* name : {"llama2", "deepseek_v3", "llama3"}) {
    const std::string text = read_file(source_file(std::string("tests/data/tokenizers/") + name + ".json"));
    for (int i = 0; i < 60; ++i) {
      std::string damaged = text;
      const int changes = 1 + static_cast<int>(random() % 3);
      for (int k = 0; k < changes; ++k)
        damaged[random() % damaged.size()] = R"("{}[],:\0-1eanul<\\x)"[random() % 20];
      if (i % 5 == 0) damaged.resize(random() % damaged.size());
      user_error(
          [&] { BpeTokenizer(parse_tokenizer_file(damaged, "t.json"), {}).encode("Some text 12 <s> é\n"); });
    }
  }
}

TEST(TokenizerFile, a_missing_file_is_named) {
  EXPECT_EQ(user_error([] { load_tokenizer_json("no/tokenizer.json"); }),
            "tokenizer 'no/tokenizer.json': there is no such file; give the path of a tokenizer.json");
}

TEST(TokenizerFile, the_alphabet_of_bytes_covers_every_byte_once) {
  std::string all, bytes;
  for (int b = 0; b < 256; ++b) all += alphabet_of_byte(static_cast<uint8_t>(b));
  ASSERT_TRUE(bytes_of_alphabet(all, bytes));
  ASSERT_EQ(bytes.size(), 256u);
  for (int b = 0; b < 256; ++b) EXPECT_EQ(static_cast<unsigned char>(bytes[b]), b);
  EXPECT_EQ(alphabet_of_byte(' '), "Ġ");
  EXPECT_FALSE(bytes_of_alphabet("a b", bytes));
}

}  // namespace
}  // namespace moebius::data
