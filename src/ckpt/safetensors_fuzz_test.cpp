// Random damage to valid files: the readers must answer with a header that is consistent, or with UserError.
// Seeds are fixed; run under the asan preset this also shows that nothing outside the buffer is read.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/hash.h"
#include "ckpt/manifest.h"
#include "ckpt/safetensors.h"

namespace moebius::ckpt {
namespace {

std::string valid_file() {
  const std::vector<TensorSpec> specs = {{"layers.0.moe.experts.up", DType::bf16, {4, 3, 2}},
                                         {"layers.0.norm", DType::f32, {8}},
                                         {"step", DType::i64, {}},
                                         {"empty", DType::f16, {0, 5}},
                                         {"mask", DType::boolean, {7}}};
  const SafetensorsLayout layout = layout_safetensors(specs, {{"format", "pt"}});
  return layout.head + std::string(layout.file_bytes - layout.head.size(), 'd');
}

// One to four random edits; most of them inside the first `focus` bytes.
std::string mutate(std::string text, size_t focus, std::mt19937& random) {
  static const std::vector<std::string> kTokens = {"{",
                                                   "}",
                                                   "[",
                                                   "]",
                                                   ",",
                                                   ":",
                                                   "\"",
                                                   "null",
                                                   "-1",
                                                   "1e999",
                                                   "18446744073709551616",
                                                   "9223372036854775807",
                                                   "\"dtype\"",
                                                   "\"shape\"",
                                                   "\"data_offsets\"",
                                                   "\"__metadata__\"",
                                                   "\"F64\"",
                                                   "\\u0000",
                                                   "\\ud800",
                                                   "[[[[[[[["};
  const auto below = [&](size_t bound) {
    return std::uniform_int_distribution<size_t>(0, std::max<size_t>(bound, 1) - 1)(random);
  };
  const size_t edits = 1 + below(4);
  for (size_t i = 0; i < edits && !text.empty(); ++i) {
    const size_t at = below(below(8) == 0 ? text.size() : std::min(focus, text.size()));
    switch (below(7)) {
      case 0:
        text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        text[at] = static_cast<char>(below(256));
        break;
      case 2:
        text.erase(at, 1 + below(16));
        break;
      case 3:
        text.insert(at, kTokens[below(kTokens.size())]);
        break;
      case 4:
        text.insert(at, text.substr(below(text.size()), below(64)));
        break;
      case 5:
        text.resize(at);
        break;
      case 6: {  // a number becomes another one
        const size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text[digit] = static_cast<char>('0' + below(10));
        break;
      }
    }
  }
  return text;
}

TEST(SafetensorsFuzz, damaged_files_are_read_consistently_or_refused) {
  std::mt19937 random(20240607);
  const std::string good = valid_file();
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string damaged = mutate(good, 8 + 600, random);
    if (i % 2 == 1 && damaged.size() >= 8) {  // keep the length right, so that the header itself is reached
      const size_t brace = damaged.rfind('}');
      const uint64_t length = brace == std::string::npos || brace < 8 ? 2 : brace + 1 - 8;
      std::memcpy(damaged.data(), &length, 8);
    }
    const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(damaged.data()),
                                       reinterpret_cast<const std::byte*>(damaged.data()) + damaged.size());
    try {
      const SafetensorsHeader header = parse_safetensors("f", bytes);
      uint64_t sum = 0;
      for (const TensorEntry& tensor : header.tensors) {
        ASSERT_LE(tensor.begin + tensor.num_bytes, bytes.size());
        ASSERT_EQ(tensor.num_bytes, tensor.spec.num_bytes());
        sum += tensor.num_bytes;
      }
      ASSERT_EQ(sum, bytes.size() - header.data_begin);
    } catch (const UserError& error) {
      ++refused;
      ASSERT_LT(std::strlen(error.what()), 2000u);
    }
  }
  EXPECT_GT(refused, 2000);
}

TEST(SafetensorsFuzz, damaged_manifests_are_refused) {
  Manifest manifest;
  manifest.step = 7;
  manifest.config = "[train]\nsteps = 7\n";
  manifest.state_json = R"({"tokens": 123, "bias": [0.5, -1e-3]})";
  manifest.shards.push_back({"model-00001-of-00001.safetensors", "model", 100, 0x1234});
  manifest.groups.push_back({"model", {{{"a", DType::f32, {2, 2}}, 0, 64}, {{"b", DType::bf16, {}}, 0, 80}}});
  const std::string good = manifest_text(manifest);
  EXPECT_EQ(manifest_text(parse_manifest("m", good)), good);

  std::mt19937 random(7);
  for (int i = 0; i < 4000; ++i) {
    std::string damaged = mutate(good, good.size(), random);
    if (damaged == good) continue;
    EXPECT_THROW(parse_manifest("m", damaged), UserError) << damaged;
    // The same with a checksum that fits, as a program would write it: never anything but UserError or a
    // manifest.
    const size_t tail = damaged.rfind(",\n  \"xxh3\"");
    if (tail == std::string::npos) continue;
    damaged = damaged.substr(0, tail) + ",\n  \"xxh3\": \"" +
              hash_hex(hash64(std::string_view(damaged).substr(0, tail))) + "\"\n}\n";
    try {
      const Manifest read = parse_manifest("m", damaged);
      for (const ManifestGroup& group : read.groups) {
        for (const ManifestTensor& tensor : group.tensors) {
          ASSERT_LT(tensor.shard, read.shards.size());
          ASSERT_LE(tensor.offset + tensor.spec.num_bytes().value(), read.shards[tensor.shard].num_bytes);
        }
      }
    } catch (const UserError&) {
    }
  }
}

}  // namespace
}  // namespace moebius::ckpt
