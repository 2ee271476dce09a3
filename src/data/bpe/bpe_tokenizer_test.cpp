#include "data/bpe/bpe_tokenizer.h"

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "data/test_files.h"
#include "data/text.h"

namespace moebius::data {
namespace {

using nlohmann::json;

std::shared_ptr<const BpeTokenizer> load(const std::string& name) {
  return std::dynamic_pointer_cast<const BpeTokenizer>(
      load_tokenizer_json(source_file("tests/data/tokenizers/" + name + ".json")));
}

const json& golden() {
  static const json all = json::parse(read_file(source_file("tests/data/tokenizers/golden.json")));
  return all;
}

std::string shakespeare(size_t begin, size_t size) {
  return read_file(source_file("examples/data/tinyshakespeare.txt")).substr(begin, size);
}

// Texts over characters that the split patterns tell apart.
std::string random_text(std::mt19937& random) {
  static const std::vector<std::string> alphabet = {
      "a",          "b",      "Z",      "Q",      "'",      "s",      "S",    "t",    "l",     "d",
      "r",          "e",      "0",      "7",      " ",      " ",      " ",    "\t",   "\n",    "\r",
      "-",          ".",      "/",      "_",      "!",      "<",      "é",    "ß",    "Å",     "ǅ",
      "ʰ",          "ª",      "ſ",      "K",      "中",     "日",     "ひ",   "カ",   "ー",    "한",
      "\u0301",     "\u0308", "ः",      "½",      "²",      "٣",      "Ⅷ",    "—",    "“",     "€",
      "🙂",       "\u200d", "\u00a0", "\u3000", "\u2028", "\u0085", "\x01", "word", "don't", " the",
      "HTTPServer", "12345",  "    ",   "//\n"};
  std::string text;
  const size_t length = 1 + random() % 40;
  for (size_t i = 0; i < length; ++i) text += alphabet[random() % alphabet.size()];
  return text;
}

class Family : public testing::TestWithParam<const char*> {};

TEST_P(Family, gives_the_ids_of_the_tokenizers_package) {
  const auto tokenizer = load(GetParam());
  const json& expected = golden()["tokenizers"][GetParam()];
  for (size_t i = 0; i < golden()["texts"].size(); ++i) {
    const auto text = golden()["texts"][i].get<std::string>();
    const auto ids = expected["ids"][i].get<std::vector<int32_t>>();
    ASSERT_EQ(tokenizer->encode(text), ids) << "text " << i << ": " << json(text).dump();
    ASSERT_EQ(tokenizer->encode_by_steps(text), ids) << "by steps, text " << i << ": " << json(text).dump();
  }
  EXPECT_EQ(tokenizer->encode("Hello there", Tokenizer::Special::kTemplate),
            expected["with_template"].get<std::vector<int32_t>>());
}

TEST_P(Family, decodes_as_the_tokenizers_package_does) {
  const auto tokenizer = load(GetParam());
  const json& expected = golden()["tokenizers"][GetParam()];
  for (size_t i = 0; i < expected["decoded"].size(); ++i) {
    const auto ids = expected["ids"][i].get<std::vector<int32_t>>();
    EXPECT_EQ(to_valid_utf8(tokenizer->decode(ids)), expected["decoded"][i].get<std::string>())
        << "text " << i << ": " << golden()["texts"][i].dump();
  }
}

TEST_P(Family, rules_and_remembered_pieces_change_nothing) {
  const auto tokenizer = load(GetParam());
  std::mt19937 random(7);
  for (int i = 0; i < 400; ++i) {
    const std::string text = random_text(random);
    ASSERT_EQ(tokenizer->encode(text), tokenizer->encode_by_steps(text)) << json(text).dump();
  }
  const std::string text = shakespeare(200'000, 60'000);
  const auto ids = tokenizer->encode_by_steps(text);
  EXPECT_EQ(tokenizer->encode(text), ids);
  EXPECT_EQ(tokenizer->encode(text), ids) << "again, from memory";
}

TEST_P(Family, texts_cut_at_split_points_have_the_same_ids) {
  const auto tokenizer = load(GetParam());
  std::string text = shakespeare(50'000, 12'000);
  std::mt19937 random(11);
  for (int i = 0; i < 300; ++i) text += random_text(random) + (i % 3 == 0 ? ".\nx" : " ");
  const auto whole = tokenizer->encode(text);
  size_t cuts = 0, from = 1;
  for (size_t cut = tokenizer->split_point(text, from); cut < text.size();
       cut = tokenizer->split_point(text, cut + 1 + cuts % 50 * 20)) {
    ++cuts;
    auto ids = tokenizer->encode(text.substr(0, cut));
    tokenizer->encode_continued(std::string_view(text).substr(cut), ids);
    ASSERT_EQ(ids, whole) << "cut at " << cut;
  }
  const bool known = tokenizer->has_fast_split() || std::string(GetParam()) == "llama2";
  EXPECT_EQ(cuts > 20, known) << cuts << " cuts";
}

INSTANTIATE_TEST_SUITE_P(Families, Family,
                         testing::Values("gpt2", "neox", "prefix_space", "llama3", "qwen2", "o200k",
                                         "deepseek_v3", "deepseek_v2", "llama2", "metaspace", "unknown"),
                         [](const auto& info) { return std::string(info.param); });

TEST(BpeTokenizer, knows_the_split_patterns_of_the_families) {
  for (const char* name : {"gpt2", "neox", "llama3", "qwen2", "o200k", "deepseek_v3"})
    EXPECT_TRUE(load(name)->has_fast_split()) << name;
}

TEST(BpeTokenizer, takes_bytes_that_are_not_utf8_as_replacement_characters) {
  const auto tokenizer = load("gpt2");
  EXPECT_EQ(tokenizer->encode("a\xFF\xC3 b\xE2\x82"), tokenizer->encode("a\uFFFD\uFFFD b\uFFFD"));
}

TEST(BpeTokenizer, special_tokens_stand_for_nothing_and_ids_beyond_for_the_replacement_character) {
  const auto tokenizer = load("gpt2");
  const auto ids = tokenizer->encode("a<|endoftext|>b<think>");
  EXPECT_EQ(tokenizer->decode(ids), "ab<think>");
  EXPECT_EQ(tokenizer->eos_id(), tokenizer->encode("<|endoftext|>")[0]);
  EXPECT_EQ(tokenizer->document_end_id(), tokenizer->eos_id());
  EXPECT_EQ(tokenizer->token_bytes(static_cast<int32_t>(tokenizer->vocab_size())), "\uFFFD");
}

TEST(BpeTokenizer, takes_begin_and_end_of_text_from_the_files_beside_it) {
  const TemporaryFolder folder;
  const auto path = folder / "tokenizer.json";
  std::filesystem::copy(source_file("tests/data/tokenizers/qwen2.json"), path);
  const auto plain = load_tokenizer_json(path);
  EXPECT_EQ(plain->bos_id(), -1);
  EXPECT_TRUE(companions_of(path.string()).empty());
  EXPECT_EQ(plain->eos_id(), 0) << "<|endoftext|>";
  write_text(folder / "tokenizer_config.json",
             R"({"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"})");
  const auto configured = open_tokenizer(path.string());
  EXPECT_EQ(companions_of(path.string()),
            std::vector<std::filesystem::path>{folder / "tokenizer_config.json"});
  EXPECT_EQ(configured->bos_id(), 1);
  EXPECT_EQ(configured->eos_id(), 2);
  EXPECT_NE(configured->fingerprint(), plain->fingerprint());
  write_text(folder / "tokenizer_config.json", R"({"eos_token": "</s>"})");
  EXPECT_EQ(user_error([&] { load_tokenizer_json(path); }),
            "tokenizer " + path.string() +
                " has no token '</s>', which the files beside it name as eos_token; put files of one model "
                "together");
}

TEST(BpeTokenizer, long_pieces_merge_as_short_ones_do) {
  const auto tokenizer = load("gpt2");
  // Merging pair by pair, as the method is defined.
  const TokenizerFile file =
      parse_tokenizer_file(read_file(source_file("tests/data/tokenizers/gpt2.json")), "gpt2.json");
  const auto slowly = [&](const std::string& letters) {
    std::vector<int32_t> ids;
    for (const char c : letters) ids.push_back(file.ids.at(std::string(1, c)));
    for (;;) {
      size_t best = 0;
      const Merge* found = nullptr;
      for (size_t i = 0; i + 1 < ids.size(); ++i)
        for (const Merge& merge : file.merges)
          if (merge.left == ids[i] && merge.right == ids[i + 1] && (!found || merge.rank < found->rank)) {
            found = &merge;
            best = i;
          }
      if (!found) return ids;
      ids[best] = found->result;
      ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    }
  };
  std::mt19937 random(3);
  for (const size_t length : {2u, 15u, 39u, 40u, 41u, 80u, 150u}) {
    std::string letters;
    for (size_t i = 0; i < length; ++i) letters += "theandorwisl"[random() % 12];
    EXPECT_EQ(tokenizer->encode(letters), slowly(letters)) << letters;
  }
}

TEST(BpeTokenizer, a_piece_of_a_million_bytes_takes_no_quadratic_time) {
  for (const char* name : {"gpt2", "llama3", "llama2", "deepseek_v2"}) {
    const auto tokenizer = load(name);
    for (const std::string unit : {"a", " ", "=", "thou", "QUJDREVG"}) {
      std::string text;
      while (text.size() < 1'000'000) text += unit;
      const auto ids = tokenizer->encode(text);
      EXPECT_EQ(tokenizer->decode(ids), text) << name << ": " << unit;
    }
  }
}

TEST(BpeTokenizer, threads_encode_at_once) {
  const auto tokenizer = load("qwen2");
  const std::string text = shakespeare(0, 40'000);
  const auto expected = tokenizer->encode(text);
  std::vector<std::vector<int32_t>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) threads.emplace_back([&] { result = tokenizer->encode(text); });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace moebius::data
