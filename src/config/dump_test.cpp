#include "config/dump.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <type_traits>

#include "base/file.h"
#include "config/docs.h"
#include "config/fields.h"
#include "config/load.h"

namespace moebius::config {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Gives a field another value than its default, whatever its kind.
void change(const Field& field) {
  std::visit(
      [&](auto* value) {
        using T = std::remove_pointer_t<decltype(value)>;
        if constexpr (std::is_same_v<T, bool>) {
          *value = !*value;
        } else if constexpr (std::is_same_v<T, int64_t>) {
          *value = *value < field.range.max ? *value + 1 : *value - 1;
        } else if constexpr (std::is_same_v<T, double>) {
          *value = *value / 3 + 0.11;  // of no default itself
        } else if constexpr (std::is_same_v<T, std::string>) {
          *value = field.choices.empty()            ? "a \"b\"\\\n\t\x01 é"
                   : field.choices.back() == *value ? field.choices.front()
                                                    : field.choices.back();
        } else if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          *value = {"x y", "#=[]", "'", ""};
        } else {
          *value = {3, 1, 2};
        }
      },
      field.target);
}

// Loads without the cross-field rules, which a config with one random change may break.
RunConfig reload(const std::string& text) {
  RunConfig config;
  std::string section;
  std::vector<std::string> overrides;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = text.find('\n', begin);
    const std::string line = text.substr(begin, end - begin);
    if (line.starts_with("[")) section = line.substr(1, line.size() - 2);
    if (line.find(" = ") != std::string::npos && !line.starts_with("#")) {
      const size_t equals = line.find(" = ");
      overrides.push_back(section + "." + line.substr(0, equals) + "=" + line.substr(equals + 3));
    }
    begin = end + 1;
  }
  apply_overrides(config, overrides);
  return config;
}

TEST(Dump, loading_the_text_gives_the_same_config_for_every_field) {
  RunConfig names;
  for (const Section& section : describe_run(names)) {
    for (const Field& field : section.fields) {
      if (field.choices.size() == 1) continue;  // no other value
      RunConfig changed;
      const auto sections = describe_run(changed);
      change(*find_field(sections, field.path));
      ASSERT_EQ(diff(RunConfig{}, changed).size(), 1u) << field.path;
      for (const DumpStyle style : {DumpStyle::kFull, DumpStyle::kMinimal}) {
        EXPECT_EQ(describe_differences(diff(reload(dump(changed, style)), changed)), "") << field.path;
      }
    }
  }
}

TEST(Dump, whole_file_round_trip_through_toml) {
  RunConfig config;
  config.data.files = {"a \"quoted\" name.txt", "b\\c.txt"};
  config.data.weights = {0.1, 1e-300};
  config.model.moe.experts = 8;
  config.model.moe.balance.aux_loss = 1.0 / 3;
  config.model.rope_theta = 1e12;
  config.train.sample_prompt = "\x7f\x02\n é 漢";
  config.train.seed = int64_t{1} << 60;
  for (const DumpStyle style : {DumpStyle::kFull, DumpStyle::kMinimal}) {
    const RunConfig loaded = parse_run_config(dump(config, style), "dump");
    EXPECT_EQ(describe_differences(diff(config, loaded)), "");
    EXPECT_EQ(loaded.train.sample_prompt, config.train.sample_prompt);
    EXPECT_EQ(loaded.model.moe.balance.aux_loss, config.model.moe.balance.aux_loss);
  }
}

TEST(Dump, minimal_has_only_what_differs) {
  RunConfig config;
  EXPECT_EQ(dump(config, DumpStyle::kMinimal), "");
  config.train.steps = 5;
  config.model.moe.experts = 8;
  EXPECT_EQ(dump(config, DumpStyle::kMinimal), "[model.moe]\nexperts = 8\n\n[train]\nsteps = 5\n");
}

TEST(Dump, full_has_meaning_unit_and_range) {
  const std::string text = dump(RunConfig{}, DumpStyle::kFull);
  EXPECT_THAT(text, HasSubstr("# Optimizer steps. [steps; at least 1]\nsteps = 1000\n"));
  EXPECT_THAT(text, HasSubstr("[fp32 or bf16]\nprecision = \"fp32\"\n"));
  EXPECT_THAT(text, HasSubstr("lr = 0.001\n"));
  EXPECT_THAT(text, HasSubstr("rope_theta = 10000.0\n"));
  size_t begin = 0;
  for (size_t end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1)
    EXPECT_LE(end - begin, 110u);
}

TEST(Diff, lists_path_and_both_values_below_a_prefix) {
  RunConfig left, right;
  right.model.dim = 256;
  right.train.steps = 9;
  EXPECT_EQ(describe_differences(diff(left, right)), "  model.dim: 128 -> 256\n  train.steps: 1000 -> 9");
  EXPECT_EQ(describe_differences(diff(left, right, "model.")), "  model.dim: 128 -> 256");
  EXPECT_TRUE(diff(left, left).empty());
}

TEST(Description, every_field_has_a_meaning_and_a_valid_default) {
  RunConfig config;
  for (const Section& section : describe_run(config)) {
    EXPECT_TRUE(section.meaning.ends_with(".")) << section.path;
    for (const Field& field : section.fields) {
      EXPECT_TRUE(field.meaning.ends_with(".")) << field.path;
      RunConfig other;
      EXPECT_NO_THROW(apply_overrides(other, {field.path + "=" + value_text(field)})) << field.path;
    }
  }
}

// MOEBIUS_UPDATE_DOCS=1 writes the file instead of comparing it.
TEST(Docs, committed_reference_is_current) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  const auto path = std::filesystem::path(root) / "docs/configuration.md";
  if (std::getenv("MOEBIUS_UPDATE_DOCS") != nullptr) write_file_atomic(path, markdown_reference());
  EXPECT_EQ(read_file(path), markdown_reference())
      << "the config structs changed: run this test with MOEBIUS_UPDATE_DOCS=1 and commit " << path;
}

}  // namespace
}  // namespace moebius::config
