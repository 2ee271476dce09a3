#include "config/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::config {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kSmall[] = "[data]\nfiles = ['a.txt']\n";

RunConfig parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_run_config(kSmall + text, "c.toml", overrides);
}
// The message for `text`, whose first line is line 3 of the file.
std::string mistake(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return message_of<UserError>([&] { parse(text, overrides); });
}

TEST(Load, reads_every_kind_of_field) {
  const RunConfig c = parse(R"(
weights = [2]
synthetic = false
[model]
layers = 6
norm_eps = 1e-6
[model.moe]
experts = 8
dense_layers = [0, 5]
score = "sigmoid"
balance.aux_loss = 0
[train]
sample_prompt = "a\nb"
steps = 2e3
)");
  EXPECT_THAT(c.data.files, ElementsAre("a.txt"));
  EXPECT_THAT(c.data.weights, ElementsAre(2.0));
  EXPECT_EQ(c.model.layers, 6);
  EXPECT_EQ(c.model.norm_eps, 1e-6);
  EXPECT_THAT(c.model.moe.dense_layers, ElementsAre(0, 5));
  EXPECT_EQ(c.model.moe.score, "sigmoid");
  EXPECT_EQ(c.model.moe.balance.aux_loss, 0.0);
  EXPECT_EQ(c.train.sample_prompt, "a\nb");
  EXPECT_EQ(c.train.steps, 2000);
  EXPECT_EQ(c.optimizer.lr, RunConfig{}.optimizer.lr);
}

TEST(Load, unknown_field_names_file_line_and_nearest_name) {
  EXPECT_EQ(mistake("[train]\nseed = 2\nstpes = 5\n"),
            "unknown field 'train.stpes' (c.toml:5); did you mean 'train.steps'?");
  EXPECT_EQ(mistake("[train]\nlr = 5\n"),
            "unknown field 'train.lr' (c.toml:4); did you mean 'optimizer.lr'?");
  EXPECT_EQ(mistake("[moe]\ntop_k = 5\n"), "unknown field 'moe' (c.toml:3); did you mean 'model.moe'?");
  EXPECT_EQ(mistake("[trian]\nsteps = 5\n"), "unknown field 'trian' (c.toml:3); did you mean 'train'?");
  EXPECT_EQ(mistake("[checkpoint]\nzzzzzzzzzzzz = 5\n").substr(0, 85),
            "unknown field 'checkpoint.zzzzzzzzzzzz' (c.toml:4); the fields of [checkpoint] are ev");
}

TEST(Load, wrong_kind_says_what_the_field_takes) {
  EXPECT_EQ(mistake("[train]\nsteps = 'many'\n"),
            "'train.steps' is \"many\" (c.toml:4); it takes an integer, allowed: at least 1");
  EXPECT_EQ(mistake("[train]\nsteps = 2.5\n"),
            "'train.steps' is 2.5 (c.toml:4); it takes an integer, allowed: at least 1");
  EXPECT_EQ(mistake("[train]\ndeterministic = 1\n"),
            "'train.deterministic' is 1 (c.toml:4); it takes true or false");
  EXPECT_THAT(mistake("[train]\nprecision = 16\n"), HasSubstr("it takes a string, allowed: fp32 or bf16"));
  EXPECT_THAT(mistake("[train]\nsteps = 2031-05-17\n"), HasSubstr("2031-05-17"));
  EXPECT_THAT(mistake("[train]\nsteps = { a = 1 }\n"), HasSubstr("it takes an integer"));
  EXPECT_THAT(mistake("[model.moe]\ndense_layers = [0, 'x']\n"), HasSubstr("it takes a list of integers"));
  EXPECT_THAT(mistake("[model]\nmoe = 3\n"), HasSubstr("'model.moe' (c.toml:4) is a section, not a field"));
}

TEST(Load, value_out_of_range_names_the_bound) {
  EXPECT_EQ(mistake("[model.moe]\ntop_k = 64\n"),
            "'model.moe.top_k' is 64 (c.toml:4), above its maximum; allowed: 1 to 32");
  EXPECT_EQ(mistake("[train]\nsteps = 0\n"),
            "'train.steps' is 0 (c.toml:4), below its minimum; allowed: at least 1");
  EXPECT_THAT(mistake("[optimizer]\nlr = nan\n"), HasSubstr("it must be finite, allowed: 0 to 100"));
  EXPECT_THAT(mistake("[train]\nseed = 99999999999999999999\n"), HasSubstr("c.toml:4"));
  EXPECT_EQ(
      mistake("[model.moe]\nscore = 'softmx'\n"),
      "'model.moe.score' is \"softmx\" (c.toml:4); choose softmax or sigmoid (did you mean 'softmax'?)");
}

TEST(Load, all_mistakes_of_a_file_come_together_in_its_order) {
  EXPECT_EQ(mistake("[train]\nsteps = 0\n[model]\nlayer = 3\n"),
            "'train.steps' is 0 (c.toml:4), below its minimum; allowed: at least 1\n"
            "unknown field 'model.layer' (c.toml:6); did you mean 'model.layers'?");
}

TEST(Load, broken_toml_names_line_and_column) {
  EXPECT_THAT(mistake("[train\nsteps = 0\n"), HasSubstr("c.toml:3:7: not valid TOML: "));
  EXPECT_THAT(mistake("[train]\nsteps = 1\nsteps = 2\n"), HasSubstr("not valid TOML"));
  EXPECT_THAT(mistake("[train]\nsample_prompt = '\xff'\n"), HasSubstr("not valid TOML"));
}

TEST(Load, missing_file_is_named) {
  EXPECT_THAT(message_of<UserError>([] { load_run_config("configs/none.toml"); }),
              HasSubstr("cannot read 'configs/none.toml'"));
  TestFolder folder;
  write_file_atomic(folder / "a.toml", kSmall);
  EXPECT_EQ(load_run_config(folder / "a.toml", {"train.steps=7"}).train.steps, 7);
}

TEST(Override, values_need_no_quotes_and_lists_no_brackets) {
  const RunConfig c =
      parse("", {"train.steps=200", "train.precision=bf16", "optimizer.lr = 3e-4",
                 "train.sample_prompt=two words", "train.deterministic=true", "data.files=a.txt,b c.txt",
                 "data.weights=[1, 0.5]", "model.moe.dense_layers=0", "data.tokenizer=1"});
  EXPECT_EQ(c.train.steps, 200);
  EXPECT_EQ(c.train.precision, "bf16");
  EXPECT_EQ(c.optimizer.lr, 3e-4);
  EXPECT_EQ(c.train.sample_prompt, "two words");
  EXPECT_TRUE(c.train.deterministic);
  EXPECT_THAT(c.data.files, ElementsAre("a.txt", "b c.txt"));
  EXPECT_THAT(c.data.weights, ElementsAre(1, 0.5));
  EXPECT_THAT(c.model.moe.dense_layers, ElementsAre(0));
  EXPECT_EQ(c.data.tokenizer, "1");
}

TEST(Override, toml_forms_work_too_and_the_last_one_wins) {
  const RunConfig c =
      parse("", {"data.files=['x,y.txt', \"b\"]", "train.sample_prompt=\"a\\nb\"", "train.steps=1",
                 "train.steps=2", "model.moe.dense_layers=[]", "data.cache_dir="});
  EXPECT_THAT(c.data.files, ElementsAre("x,y.txt", "b"));
  EXPECT_EQ(c.train.sample_prompt, "a\nb");
  EXPECT_EQ(c.train.steps, 2);
  EXPECT_TRUE(c.model.moe.dense_layers.empty());
  EXPECT_EQ(c.data.cache_dir, "");
  EXPECT_THAT(parse("", {"data.files=[a.txt, b.txt]"}).data.files, ElementsAre("a.txt", "b.txt"));
}

TEST(Override, mistakes_name_the_override) {
  EXPECT_EQ(mistake("", {"train.stpes=5"}),
            "unknown field 'train.stpes' (--set train.stpes=5); did you mean 'train.steps'?");
  EXPECT_EQ(mistake("", {"steps=5"}), "unknown field 'steps' (--set steps=5); did you mean 'train.steps'?");
  EXPECT_EQ(mistake("", {"train.steps"}),
            "--set train.steps has no value; write it as --set train.steps=200");
  EXPECT_EQ(mistake("", {"train.steps=abc"}),
            "'train.steps' is \"abc\" (--set train.steps=abc); it takes an integer, allowed: at least 1");
  EXPECT_EQ(mistake("", {"train.steps="}),
            "'train.steps' is \"\" (--set train.steps=); it takes an integer, allowed: at least 1");
  EXPECT_EQ(mistake("", {"model.moe=5"}),
            "'model.moe' (--set model.moe=5) is a section; name one of its fields, as model.moe.experts");
  EXPECT_THAT(mistake("", {"train.sample_prompt=\xff"}), HasSubstr("it must be valid UTF-8"));
  EXPECT_THAT(mistake("", {"train.steps=1\nseed=2"}), HasSubstr("it takes an integer"));
}

}  // namespace
}  // namespace moebius::config
