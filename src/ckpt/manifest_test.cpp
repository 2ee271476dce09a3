#include "ckpt/manifest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/hash.h"
#include "base/test_folder.h"

namespace moebius::ckpt {
namespace {

using testing::HasSubstr;

Manifest example() {
  Manifest manifest;
  manifest.step = 200;
  manifest.config = "[train]\nseed = 1 # \"ü\"\n";
  manifest.state_json = R"({"z": 1, "a": {"lr": 0.1}})";
  manifest.shards.push_back({"model-00001-of-00001.safetensors", "model", 100, 0xABC});
  manifest.groups.push_back({"model", {{{"w", DType::f32, {2, 2}}, 0, 64}}});
  return manifest;
}

// Replaces text and gives the result a checksum that fits.
std::string edited(const std::string& from, const std::string& to) {
  std::string text = manifest_text(example());
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
  text.resize(text.rfind(",\n  \"xxh3\""));
  return text + ",\n  \"xxh3\": \"" + hash_hex(hash64(std::string_view(text))) + "\"\n}\n";
}

std::string refusal(const std::string& text) {
  return message_of<UserError>([&] { parse_manifest("m.json", text); });
}

TEST(Manifest, is_read_back_whole) {
  const Manifest read = parse_manifest("m.json", manifest_text(example()));
  EXPECT_EQ(read.step, 200);
  EXPECT_EQ(read.config, example().config);
  EXPECT_EQ(read.state_json, R"({"a":{"lr":0.1},"z":1})");
  ASSERT_EQ(read.shards.size(), 1u);
  EXPECT_EQ(read.shards[0].xxh3, 0xABCu);
  EXPECT_EQ(read.num_bytes(), 100u);
  ASSERT_EQ(read.groups.size(), 1u);
  EXPECT_EQ(read.groups[0].tensors[0].spec.shape, (std::vector<int64_t>{2, 2}));
}

TEST(Manifest, any_edit_breaks_the_checksum) {
  std::string text = manifest_text(example());
  text.replace(text.find("200"), 3, "300");
  EXPECT_THAT(refusal(text), HasSubstr("(edited or damaged after it was saved)"));
  EXPECT_THAT(refusal(manifest_text(example()) + "\n"), HasSubstr("does not end with its checksum"));
}

TEST(Manifest, foreign_json_is_refused) {
  EXPECT_EQ(refusal("{\"weight_map\": {}}"),
            "m.json: not the manifest of a Moebius checkpoint (field 'format' is not 'moebius-checkpoint')");
  EXPECT_EQ(refusal("[1]"),
            "m.json: not the manifest of a Moebius checkpoint (field 'format' is not 'moebius-checkpoint')");
  EXPECT_THAT(refusal(""), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(refusal("{\"step\": 1"), HasSubstr("not valid JSON at byte"));
  EXPECT_THAT(refusal("{\"step\": 1e999}"), HasSubstr("not valid JSON"));
  EXPECT_EQ(refusal("{\"a\": 1, \"a\": 2}"), "m.json: field 'a' appears twice");
  EXPECT_EQ(refusal(std::string(100000, '[')), "m.json: nested deeper than 64 levels");
}

TEST(Manifest, newer_versions_are_refused_before_their_checksum) {
  std::string text = manifest_text(example());
  text.replace(text.find("\"version\": 1"), 12, "\"version\": 2");
  EXPECT_EQ(
      refusal(text),
      "m.json: format version 2, but this program reads version 1; use the newer Moebius that wrote it");
}

TEST(Manifest, fields_that_are_wrong_are_named) {
  EXPECT_EQ(refusal(edited("\"step\": 200", "\"step\": -1")),
            "m.json: field 'step': expected a whole number from 0, found -1");
  EXPECT_EQ(refusal(edited("\"step\": 200,", "")), "m.json: field 'step' is missing");
  EXPECT_EQ(refusal(edited("\"step\": 200", "\"step\": 200, \"extra\": 1")), "m.json: unknown field 'extra'");
  EXPECT_EQ(refusal(edited("\"file\": \"model-00001", "\"file\": \"../model-00001")),
            "m.json: field 'shards[0].file': expected a file name without a folder, found "
            "'../model-00001-of-00001.safetensors'");
  EXPECT_EQ(refusal(edited("\"shard\": \"model", "\"shard\": \"other")),
            "m.json: field 'groups.model.w.shard': expected a shard of group 'model', found "
            "'other-00001-of-00001.safetensors'");
  EXPECT_EQ(refusal(edited("\"offset\": 64", "\"offset\": 96")),
            "m.json: tensor 'w' of shape [2, 2] at offset 96 does not fit into "
            "model-00001-of-00001.safetensors of 100 bytes");
  EXPECT_EQ(refusal(edited("\"F32\"", "\"F31\"")),
            "m.json: field 'groups.model.w.dtype': expected a known dtype, found 'F31'");
}

}  // namespace
}  // namespace moebius::ckpt
