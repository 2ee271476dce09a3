#include "ckpt/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/test_folder.h"

namespace moebius::ckpt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string file_of(const std::string& json, size_t data_bytes) {
  const uint64_t length = json.size();
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, 8);
  return file + json + std::string(data_bytes, 'x');
}

SafetensorsHeader parse(const std::string& file) {
  return parse_safetensors("f.safetensors", std::as_bytes(std::span(file)));
}

std::string refusal(const std::string& file) {
  return message_of<UserError>([&] { parse(file); });
}

std::string refusal(const std::string& json, size_t data_bytes) {
  return refusal(file_of(json, data_bytes));
}

TEST(Safetensors, layout_is_read_back) {
  const std::vector<TensorSpec> specs = {{"b", DType::bf16, {2, 3}},
                                         {"a", DType::boolean, {5}},
                                         {"scalar", DType::i64, {}},
                                         {"empty", DType::f32, {0, 7}},
                                         {"odd \"name\"\n\x01 \xC3\xA4", DType::f64, {1}}};
  const SafetensorsLayout layout = layout_safetensors(specs, {{"format", "pt"}, {"k", "v\\"}});
  EXPECT_EQ(layout.head.size() % 8, 0u);
  EXPECT_EQ(layout.file_bytes, layout.head.size() + 8 + 8 + 12 + 5);
  const SafetensorsHeader header = parse(layout.head + std::string(8 + 8 + 12 + 5, 'x'));
  EXPECT_EQ(header.metadata.at("k"), "v\\");
  ASSERT_EQ(header.tensors.size(), specs.size());
  for (size_t i = 0; i < layout.tensors.size(); ++i) {
    const TensorSpec& spec = specs[layout.source[i]];
    const TensorEntry* entry = header.find(spec.name);
    ASSERT_NE(entry, nullptr) << spec.name;
    EXPECT_EQ(entry->spec.dtype, spec.dtype);
    EXPECT_EQ(entry->spec.shape, spec.shape);
    EXPECT_EQ(entry->begin, layout.tensors[i].begin);
    EXPECT_EQ(entry->begin % item_bytes(spec.dtype), 0u) << spec.name;
  }
  EXPECT_EQ(header.find("c"), nullptr);
}

TEST(Safetensors, layout_does_not_depend_on_the_order_of_the_specs) {
  const TensorSpec a{"a", DType::f32, {2}}, b{"b", DType::f16, {4}}, c{"c", DType::f32, {1}};
  EXPECT_EQ(layout_safetensors(std::vector{a, b, c}, {}).head,
            layout_safetensors(std::vector{c, b, a}, {}).head);
}

TEST(Safetensors, dtype_names_go_both_ways) {
  for (const std::string_view name :
       {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3"}) {
    ASSERT_TRUE(dtype_from_name(name).has_value()) << name;
    EXPECT_EQ(dtype_name(*dtype_from_name(name)), name);
  }
  EXPECT_FALSE(dtype_from_name("F8_E5M2").has_value());
}

TEST(Safetensors, sizes_that_leave_63_bits_have_no_number_of_bytes) {
  constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
  EXPECT_FALSE((TensorSpec{"x", DType::f32, {kHuge}}).num_bytes());
  EXPECT_FALSE((TensorSpec{"x", DType::u8, {int64_t{1} << 32, int64_t{1} << 32}}).num_bytes());
  EXPECT_FALSE((TensorSpec{"x", DType::u8, {0, kHuge, kHuge}}).num_bytes());
  EXPECT_FALSE((TensorSpec{"x", DType::u8, {-1}}).num_bytes());
  EXPECT_EQ((TensorSpec{"x", DType::u8, {kHuge}}).num_bytes(), static_cast<uint64_t>(kHuge));
  EXPECT_EQ((TensorSpec{"x", DType::f64, {3, 0}}).num_bytes(), 0u);
}

TEST(Safetensors, files_without_tensors_are_fine) {
  EXPECT_TRUE(parse(file_of("{}", 0)).tensors.empty());
  EXPECT_TRUE(parse(file_of("{}      ", 0)).tensors.empty());
}

TEST(Safetensors, tensors_may_stand_in_any_order) {
  const SafetensorsHeader header = parse(file_of(R"({"b":{"data_offsets":[4,6],"shape":[2],"dtype":"U8"},)"
                                                 R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},)"
                                                 R"("z":{"dtype":"F32","shape":[0],"data_offsets":[4,4]}})",
                                                 6));
  EXPECT_THAT(header.find("b")->spec.shape, ElementsAre(2));
  EXPECT_TRUE(header.find("a")->spec.shape.empty());
  EXPECT_EQ(header.find("b")->begin, header.data_begin + 4);
}

TEST(Safetensors, lengths_that_cannot_be_are_refused) {
  EXPECT_EQ(
      refusal(std::string("abc")),
      "f.safetensors: not a safetensors file: 3 bytes, expected at least 10 (header length and header)");
  std::string huge = file_of("{}", 0);
  std::memset(huge.data(), 0xFF, 8);
  EXPECT_EQ(
      refusal(huge),
      "f.safetensors: not a safetensors file: header length 18446744073709551615, expected 2 to 100000000");
  EXPECT_EQ(refusal(file_of("{}      ", 0).substr(0, 12)),
            "f.safetensors: truncated: header of 8 bytes announced, but only 4 bytes follow");
  EXPECT_THAT(refusal("[]", 0), HasSubstr("does not begin with '{'"));
}

TEST(Safetensors, data_that_does_not_match_its_shape_is_refused) {
  EXPECT_EQ(refusal(R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}})", 20),
            "f.safetensors: tensor 'w': shape [2, 3] of F32 needs 24 bytes, but data_offsets give 20");
  EXPECT_EQ(refusal(R"({"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}})", 20),
            "f.safetensors: tensor 'w': data ends at byte 24 of the data section, but the file holds only 20 "
            "bytes of "
            "data (truncated, or not written by a complete save)");
  EXPECT_EQ(refusal(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[2,1]}})", 2),
            "f.safetensors: tensor 'w': data_offsets end at 1 before they begin at 2");
  EXPECT_THAT(refusal(R"({"w":{"dtype":"F64","shape":[4611686018427387904,8],"data_offsets":[0,0]}})", 0),
              HasSubstr("is too large to exist"));
  EXPECT_THAT(refusal(R"({"w":{"dtype":"F64","shape":[18446744073709551615],"data_offsets":[0,0]}})", 0),
              HasSubstr("dim 18446744073709551615 is too large to exist"));
}

TEST(Safetensors, overlaps_and_holes_are_refused) {
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}})",
                    6),
            "f.safetensors: tensors 'a' and 'b' overlap: the first ends at byte 4, the second begins at 2");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
                    R"("b":{"dtype":"U8","shape":[4],"data_offsets":[5,9]}})",
                    9),
            "f.safetensors: bytes 4 to 5 before tensor 'b' belong to no tensor");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})", 7),
            "f.safetensors: the tensors end at byte 4 of the data section, but the file holds 7 bytes of "
            "data; the last "
            "3 belong to no tensor");
}

TEST(Safetensors, headers_of_another_grammar_are_refused) {
  const std::string good = R"({"dtype":"U8","shape":[1],"data_offsets":[0,1]})";
  EXPECT_EQ(refusal("{\"a\":" + good + ",\"a\":" + good + "}", 1),
            "f.safetensors: tensor 'a' appears twice in the header");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","dtype":"U8"}})", 1),
            "f.safetensors: tensor 'a': field 'dtype' appears twice");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"F8_E5M2"}})", 1),
            "f.safetensors: tensor 'a': dtype 'F8_E5M2' is not known; expected F64, F32, F16, BF16, I64, "
            "I32, I16, I8, U8, BOOL or F8_E4M3");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","shape":[1]}})", 1),
            "f.safetensors: tensor 'a': field 'data_offsets' is missing");
  EXPECT_EQ(refusal(R"({"a":{"dtype":"U8","strides":[1]}})", 1),
            "f.safetensors: tensor 'a': unknown field 'strides', expected dtype, shape and data_offsets");
  EXPECT_EQ(refusal(R"({"a":{"shape":[-1]}})", 1),
            "f.safetensors: tensor 'a': found the number -1, expected dims from 0");
  EXPECT_EQ(refusal(R"({"a":{"shape":[1.5]}})", 1),
            "f.safetensors: tensor 'a': found the number 1.5, expected dims from 0");
  EXPECT_EQ(refusal(R"({"a":{"data_offsets":[1]}})", 1),
            "f.safetensors: tensor 'a': data_offsets have 1 numbers, expected 2");
  EXPECT_EQ(refusal(R"({"a":{"data_offsets":[1,2,3]}})", 1),
            "f.safetensors: tensor 'a': data_offsets have more than 2 numbers");
  EXPECT_EQ(
      refusal(R"({"a":[1]})", 1),
      "f.safetensors: tensor 'a': found an array, expected an object with dtype, shape and data_offsets");
  EXPECT_EQ(refusal(R"({"":{}})", 1), "f.safetensors: tensor name '' has 0 bytes, expected 1 to 4096");
  EXPECT_EQ(refusal(R"({"__metadata__":{"a":1}})", 0),
            "f.safetensors: header: found the number 1, expected a text");
  EXPECT_EQ(refusal(R"({"__metadata__":{"a":"1","a":"2"}})", 0),
            "f.safetensors: __metadata__ has the key 'a' twice");
  EXPECT_EQ(refusal(R"({"__metadata__":{},"__metadata__":{}})", 0),
            "f.safetensors: __metadata__ appears twice in the header");
  EXPECT_THAT(refusal("{\"a\xFF\":" + good + "}", 1), HasSubstr("not valid JSON at its byte"));
  EXPECT_THAT(refusal("{}}", 0), HasSubstr("not valid JSON at its byte 3"));
  EXPECT_THAT(refusal("{\"a\":{\"shape\":" + std::string(100000, '['), 1), HasSubstr("found an array"));
  std::string rank = "{\"a\":{\"shape\":[1";
  for (int i = 0; i < 40; ++i) rank += ",1";
  EXPECT_EQ(refusal(rank + "]}}", 1), "f.safetensors: tensor 'a': more than 32 dims");
}

TEST(Safetensors, names_from_files_are_printed_safely) {
  EXPECT_EQ(refusal(R"({"\u001b[31m":{"shape":[]}})", 1),
            "f.safetensors: tensor '\\x1b[31m': field 'dtype' is missing");
  const std::string message = refusal("{\"" + std::string(3000, 'n') + "\":{\"shape\":[]}}", 1);
  EXPECT_LT(message.size(), 250u);
}

}  // namespace
}  // namespace moebius::ckpt
