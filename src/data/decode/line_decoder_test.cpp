#include "data/decode/line_decoder.h"

#include <random>

#include "data/decode/cycle_model.h"
#include "data/pipeline/json_text.h"
#include "data/test_files.h"

namespace moebius::data {
namespace {

using Status = DecodedLines::Status;

std::vector<std::string> texts_of(const DecodedLines& decoded) {
  std::vector<std::string> texts;
  uint32_t begin = 0;
  for (size_t i = 0; i < decoded.status.size(); ++i) {
    texts.push_back(decoded.status[i] == Status::text
                        ? decoded.text.substr(begin, decoded.line_end[i] - begin)
                    : decoded.status[i] == Status::for_host ? "(host)"
                                                            : "(blank)");
    begin = decoded.line_end[i];
  }
  return texts;
}

std::vector<std::string> decode(LineDecoder& decoder, const std::string& lines,
                                const std::string& field = "text") {
  DecodedLines decoded;
  decoder.decode(lines, field, decoded);
  return texts_of(decoded);
}

using Texts = std::vector<std::string>;

TEST(LineDecoder, finds_the_field_of_an_object_and_spells_escapes) {
  const auto decoder = make_compiled_decoder();
  EXPECT_EQ(
      decode(
          *decoder,
          "{\"text\":\"a\"}\n\n \t\r\n {\"n\": [1, {\"text\": \"no\"}], \"text\": \"b\"} \n{\"text\": \"\"}"),
      (Texts{"a", "(blank)", "(blank)", "b", ""}));
  EXPECT_EQ(decode(*decoder, R"({"text": "\n\t\r\b\f\"\\\/ \u0041\u00e9\u20AC\ud83d\ude00 é€😀"})"),
            (Texts{"\n\t\r\b\f\"\\/ Aé€😀 é€😀"}));
  EXPECT_EQ(decode(*decoder, R"({"t\u0065xt": "spelt", "text": "second"})"), (Texts{"spelt"}));
  EXPECT_EQ(
      decode(
          *decoder,
          R"({"a": "text", "textt": "x", "tex": "y", "b": true, "c": false, "d": null, "e": -0.5e+12, "text": "z"})"),
      (Texts{"z"}));
  EXPECT_EQ(decode(*decoder, ""), Texts{});
  EXPECT_EQ(decode(*decoder, "\n"), Texts{"(blank)"});
  const std::string longest(64, 'f');
  EXPECT_EQ(decode(*decoder, "{\"" + longest + "f\": \"no\", \"" + longest + "\": \"x\"}", longest),
            (Texts{"x"}));
  EXPECT_TRUE(kernel_supports_field(longest));
  EXPECT_FALSE(kernel_supports_field(longest + "f"));
  EXPECT_FALSE(kernel_supports_field("/a/b"));
}

TEST(LineDecoder, leaves_what_is_wrong_or_rare_to_the_host) {
  const auto decoder = make_compiled_decoder();
  for (const char* line : {"{\"text\": \"a}",
                           "{\"text\": \"a\"",
                           "{\"text\": \"a\"}}",
                           "[\"text\"]",
                           "\"text\"",
                           "{\"text\": 1}",
                           "{\"a\": \"b\"}",
                           "{\"text\": \"a\",}",
                           "{,\"text\": \"a\"}",
                           "{\"text\" \"a\"}",
                           "{\"text\": \"\\x\"}",
                           "{\"text\": \"\\u12g4\"}",
                           "{\"text\": \"\\ud800\"}",
                           "{\"text\": \"\\udc00\"}",
                           "{\"text\": \"\\ud800\\u0041\"}",
                           "{\"text\": \"\xC0\x80\"}",
                           "{\"text\": \"\xED\xA0\x80\"}",
                           "{\"text\": \"\xF4\x90\x80\x80\"}",
                           "{\"text\": \"\xE2\x82\"}",
                           "{\"text\": \"\t\"}",
                           "{\"text\": \"a\", \"n\": 01}",
                           "{\"text\": \"a\", \"n\": 1.}",
                           "{\"text\": \"a\", \"n\": -}",
                           "{\"text\": \"a\", \"n\": 1e}",
                           "{\"text\": \"a\", \"n\": 1234567890123456789}",
                           "{\"text\": \"a\", \"n\": 1e999}",
                           "{\"text\": \"a\", \"n\": tru}",
                           "{\"text\": \"a\", \"n\": truee}",
                           "{\"text\": \"a\", \"n\": [1 2]}",
                           "{\"text\": \"a\", \"n\": [1}}",
                           "\xEF\xBB\xBF{\"text\": \"a\"}",
                           "x"}) {
    EXPECT_EQ(decode(*decoder, line), (Texts{"(host)"})) << line;
    EXPECT_EQ(decode(*decoder, std::string(line) + "\n{\"text\": \"good\"}\n"), (Texts{"(host)", "good"}))
        << line;
  }
  const std::string deep = "{\"text\": \"a\", \"n\": " + std::string(63, '[') + std::string(63, ']') + "}";
  const std::string deeper = "{\"text\": \"a\", \"n\": " + std::string(64, '[') + std::string(64, ']') + "}";
  EXPECT_EQ(decode(*decoder, deep + "\n" + deeper), (Texts{"a", "(host)"}));
}

// Whatever the kernel accepts, the host's parser gives the same.
TEST(LineDecoder, damaged_lines_are_never_read_otherwise_than_by_the_host) {
  const auto decoder = make_compiled_decoder();
  JsonText host("text");
  std::mt19937 random(42);
  const std::string good =
      R"({"id": -12.5e3, "text": "caf\u00e9 \ud83d\ude00 \"x\" é€😀", "list": [true, false, null, {"text": "in"}, []], "o": {}})";
  static const std::vector<std::string> kParts = {
      "{", "}", "[", "]", "\"", "\\",   "\\u",      ",",    ":",    "0",    "1",
      "-", ".", "e", " ", "\t", "true", "\"text\"", "\xF0", "\x80", "null", "\r"};
  int accepted = 0, refused = 0;
  for (int i = 0; i < 30000; ++i) {
    std::string line = good;
    for (size_t edits = random() % 4; edits > 0; --edits) {
      const size_t at = random() % line.size();
      switch (random() % 4) {
        case 0:
          line[at] = static_cast<char>(random());
          break;
        case 1:
          line.erase(at, 1 + random() % 6);
          break;
        case 2:
          line.insert(at, kParts[random() % kParts.size()]);
          break;
        case 3:
          line.insert(at, line.substr(random() % line.size(), random() % 20));
          break;
      }
      if (line.empty()) line = "x";
    }
    std::erase(line, '\n');
    const Texts texts = decode(*decoder, line);
    if (texts.size() != 1 || texts[0] == "(host)" || texts[0] == "(blank)") {
      ++refused;
      continue;
    }
    std::string problem;
    const std::string expected(host.find(line, problem));
    ASSERT_EQ(problem, "") << line;
    ASSERT_EQ(texts[0], expected) << line;
    ++accepted;
  }
  EXPECT_GT(accepted, 8000);
  EXPECT_GT(refused, 8000);
}

TEST(LineDecoder, opencl_gives_what_the_compiled_kernel_gives) {
  if (const std::string missing = why_no_opencl(); !missing.empty()) GTEST_SKIP() << missing;
  const auto compiled = make_compiled_decoder(), device = make_opencl_decoder();
  EXPECT_FALSE(device->device().empty());
  std::mt19937 random(4);
  for (const size_t count : {0, 1, 7, 3000}) {
    std::string lines;
    for (size_t i = 0; i < count; ++i) {
      std::string line =
          R"({"n": [1.5, {"a": null}], "text": "line \u00e9\ud83d\ude00 )" + std::to_string(random()) + "\"}";
      if (i % 9 == 0) line[random() % line.size()] = static_cast<char>(random());
      lines += line + (i + 1 == count ? "" : "\n");
    }
    DecodedLines expected, found;
    compiled->decode(lines, "text", expected);
    device->decode(lines, "text", found);
    EXPECT_TRUE(found.text == expected.text) << count;
    EXPECT_EQ(found.line_end, expected.line_end);
    EXPECT_TRUE(found.status == expected.status);
  }
}

TEST(CycleModel, predicts_by_arithmetic) {
  FpgaAssumptions assumptions{.clock_mhz = 300,
                              .cycles_per_byte = 1,
                              .cycles_per_batch = 0,
                              .engines = 8,
                              .pcie_gb_per_second = 12,
                              .board_watts = 24};
  FpgaPrediction predicted = predict_fpga(assumptions, 1 << 30, 1 << 29, 1 << 20);
  EXPECT_NEAR(predicted.engine_gb_per_second, 0.3, 1e-12);
  EXPECT_NEAR(predicted.gb_per_second, 2.4, 1e-12);
  EXPECT_NEAR(predicted.joules_per_gb, 10, 1e-9);
  EXPECT_FALSE(predicted.is_bound_by_pcie);
  assumptions.engines = 64;
  predicted = predict_fpga(assumptions, 1 << 30, 1 << 29, 1 << 20);
  EXPECT_NEAR(predicted.gb_per_second, 12, 1e-12);
  EXPECT_TRUE(predicted.is_bound_by_pcie);
  assumptions.cycles_per_batch = 1 << 20;
  EXPECT_NEAR(predict_fpga(assumptions, 1 << 30, 1 << 29, 1 << 20).engine_gb_per_second, 0.15, 1e-12);
}

}  // namespace
}  // namespace moebius::data
