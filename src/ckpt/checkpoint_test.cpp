#include "ckpt/checkpoint.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <mutex>

#include "base/error.h"
#include "base/test_folder.h"
#include "ckpt/folder.h"
#include "ckpt/test_tensors.h"

namespace moebius::ckpt {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(Checkpoint, all_dtypes_and_shapes_come_back_bit_for_bit) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(1);
  const fs::path path = save_checkpoint(run.path(), {200, "[train]\n", R"({"tokens": 4096})"}, saved, {});
  EXPECT_EQ(path, run.path() / "checkpoints" / "step-000200");
  std::vector<TensorGroup> loaded = zeros_like(saved);
  const Checkpoint checkpoint = Checkpoint::open(path);
  checkpoint.load(loaded);
  EXPECT_EQ(first_difference(saved, loaded), "");
  EXPECT_EQ(checkpoint.step(), 200);
  EXPECT_EQ(checkpoint.config(), "[train]\n");
  EXPECT_EQ(checkpoint.state_json(), R"({"tokens":4096})");
  EXPECT_TRUE(checkpoint.has_group("optimizer"));
  EXPECT_FALSE(checkpoint.has_group("ema"));
}

TEST(Checkpoint, one_group_loads_without_the_others) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(2);
  std::vector<TensorGroup> model = {zeros_like(saved)[0]};
  Checkpoint::open(save_checkpoint(run.path(), {1, "", "{}"}, saved, {})).load(model);
  EXPECT_EQ(first_difference(model, saved), "");
}

TEST(Checkpoint, many_shards_hold_the_same_as_one) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(3);
  const fs::path path = save_checkpoint(run.path(), {5, "", "{}"}, saved, {.shard_bytes = 100});
  const Checkpoint checkpoint = Checkpoint::open(path);
  EXPECT_GT(checkpoint.manifest().shards.size(), 7u);
  EXPECT_TRUE(fs::exists(path / "optimizer-00003-of-00003.safetensors"));
  std::vector<TensorGroup> loaded = zeros_like(saved);
  checkpoint.load(loaded);
  EXPECT_EQ(first_difference(saved, loaded), "");
}

TEST(Checkpoint, groups_without_tensors_are_kept) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = {{"model", {}}};
  const Checkpoint checkpoint = Checkpoint::open(save_checkpoint(run.path(), {0, "", "{}"}, saved, {}));
  EXPECT_TRUE(checkpoint.has_group("model"));
  checkpoint.load(saved);
}

TEST(Checkpoint, same_state_gives_the_same_bytes_whatever_the_order) {
  const TestFolder first, second;
  std::vector<TensorGroup> groups = example_groups(4);
  save_checkpoint(first.path(), {7, "c", R"({"a":1,"b":2})"}, groups, {.shard_bytes = 5000});
  std::reverse(groups.begin(), groups.end());
  for (TensorGroup& group : groups) std::reverse(group.tensors.begin(), group.tensors.end());
  save_checkpoint(second.path(), {7, "c", R"({"b":2, "a":1})"}, groups, {.shard_bytes = 5000});
  EXPECT_EQ(contents_of(first.path()), contents_of(second.path()));
}

TEST(Checkpoint, strided_tensors_and_leaves_keep_their_place) {
  const TestFolder run;
  const at::Tensor base = at::arange(12, at::kFloat).view({3, 4});
  const std::vector<TensorGroup> saved = {{"model", {{"t", base.t()}}}};
  const Checkpoint checkpoint = Checkpoint::open(save_checkpoint(run.path(), {1, "", "{}"}, saved, {}));
  const at::Tensor target = at::zeros({3, 4});
  checkpoint.load(std::vector<TensorGroup>{{"model", {{"t", target.t()}}}});
  EXPECT_TRUE(at::equal(target, base));
  const at::Tensor leaf = at::zeros({4, 3}).requires_grad_();
  const void* data = leaf.const_data_ptr();
  checkpoint.load(std::vector<TensorGroup>{{"model", {{"t", leaf}}}});
  EXPECT_TRUE(at::equal(leaf.detach(), base.t()));
  EXPECT_TRUE(leaf.is_leaf() && leaf.requires_grad());
  EXPECT_EQ(leaf.const_data_ptr(), data);
}

TEST(Checkpoint, another_model_is_refused_and_nothing_changes) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = {
      {"model", {{"a", at::ones({2, 3})}, {"b", at::ones({4})}, {"c", at::ones({1})}}}};
  const fs::path path = save_checkpoint(run.path(), {1, "", "{}"}, saved, {});
  const at::Tensor a = at::zeros({2, 4}), b = at::zeros({4}, at::kBFloat16), d = at::zeros({1});
  const std::string message = message_of<UserError>([&] {
    Checkpoint::open(path).load(
        std::vector<TensorGroup>{{"model", {{"a", a}, {"b", b}, {"d", d}}}, {"ema", {}}});
  });
  EXPECT_EQ(
      message,
      concat("checkpoint '", path.string(),
             "' does not fit this model: 1 tensor of group 'model' missing there: 'd'; 1 tensor of group "
             "'model' unknown here: 'c'; 'a' is F32 [2, 3] there, but F32 [2, 4] here; 'b' is F32 [4] "
             "there, but BF16 [4] here; it has no group 'ema'. Use the configuration that it was saved "
             "with (stored in its manifest.json), or start another run folder"));
  EXPECT_EQ(a.sum().item<float>(), 0);
  EXPECT_EQ(d.sum().item<float>(), 0);
}

TEST(Checkpoint, only_the_newest_are_kept) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(5);
  for (int64_t step = 100; step <= 500; step += 100)
    save_checkpoint(run.path(), {step, "", "{}"}, saved, {.keep = 2});
  EXPECT_THAT(list_steps(run.path()), ElementsAre(500, 400));
  size_t entries = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(checkpoints_dir(run.path()))) ++entries;
  EXPECT_EQ(entries, 2u);
}

TEST(Checkpoint, saving_a_step_again_replaces_it) {
  const TestFolder run;
  std::vector<TensorGroup> groups = example_groups(6);
  save_checkpoint(run.path(), {100, "", "{}"}, groups, {});
  groups = example_groups(7);
  save_checkpoint(run.path(), {100, "", "{}"}, groups, {});
  std::vector<TensorGroup> loaded = zeros_like(groups);
  find_latest(run.path())->load(loaded);
  EXPECT_EQ(first_difference(groups, loaded), "");
  EXPECT_THAT(list_steps(run.path()), ElementsAre(100));
}

TEST(Checkpoint, stays_readable_when_its_folder_is_removed) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(8);
  const Checkpoint checkpoint = Checkpoint::open(save_checkpoint(run.path(), {1, "", "{}"}, saved, {}));
  fs::remove_all(checkpoint.path());
  std::vector<TensorGroup> loaded = zeros_like(saved);
  checkpoint.load(loaded);
  EXPECT_EQ(first_difference(saved, loaded), "");
}

TEST(Checkpoint, mapped_values_are_the_saved_ones_and_outlive_the_checkpoint) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(5);
  std::vector<TensorGroup> mapped = zeros_like(saved);
  {
    const Checkpoint checkpoint = Checkpoint::open(save_checkpoint(run.path(), {1, "", "{}"}, saved, {}));
    const std::vector<at::Tensor> values = checkpoint.mapped(mapped[0]);
    ASSERT_EQ(values.size(), mapped[0].tensors.size());
    for (size_t i = 0; i < values.size(); ++i) mapped[0].tensors[i].tensor = values[i];
    EXPECT_THROW((void)checkpoint.mapped({"model", {}}), UserError);
  }
  EXPECT_EQ(first_difference({mapped[0]}, {saved[0]}), "");
}

// Tensors "0" to "9" of one byte each that note when they are prepared and emitted.
std::vector<PendingGroup> noting_tensors(const std::function<void(const std::string&, char)>& note) {
  std::vector<PendingGroup> groups{{"model", {}}};
  for (char name = '0'; name <= '9'; ++name)
    groups[0].tensors.push_back({{std::string(1, name), DType::u8, {1}},
                                 [note, name](const ByteSink& sink) {
                                   note("emit", name);
                                   sink(std::as_bytes(std::span(&name, 1)));
                                 },
                                 [note, name] { note("prepare", name); }});
  return groups;
}

TEST(Checkpoint, each_tensor_is_prepared_once_and_before_it_is_written) {
  const TestFolder run;
  std::mutex mutex;
  std::string prepared, emitted;
  const auto groups = noting_tensors([&](const std::string& what, char name) {
    const std::lock_guard lock(mutex);
    (what == "emit" ? emitted : prepared) += name;
    EXPECT_GE(prepared.size(), emitted.size());
    EXPECT_LE(prepared.size(), emitted.size() + 2);
  });
  write_checkpoint(run.path(), {1, "", "{}"}, groups, {.shard_bytes = 3});
  EXPECT_EQ(prepared, "0123456789");
  EXPECT_EQ(emitted, "0123456789");
}

TEST(Checkpoint, an_error_of_preparing_leaves_nothing_behind) {
  const TestFolder run;
  const auto groups = noting_tensors([](const std::string& what, char name) {
    if (what == "prepare" && name == '4') throw_user_error("the source is damaged");
  });
  EXPECT_THAT(message_of<UserError>([&] {
                write_checkpoint(run.path(), {1, "", "{}"}, groups, {});
              }),
              HasSubstr("was not saved: the source is damaged"));
  EXPECT_THAT(contents_of(run.path()), testing::IsEmpty());
}

TEST(Checkpoint, latest_is_none_before_the_first) {
  const TestFolder run;
  EXPECT_FALSE(find_latest(run.path()).has_value());
  EXPECT_FALSE(find_latest(run / "nowhere").has_value());
}

TEST(Checkpoint, run_and_checkpoint_folders_are_told_apart) {
  const TestFolder run;
  const std::vector<TensorGroup> saved = example_groups(9);
  save_checkpoint(run.path(), {1, "", "{}"}, saved, {});
  const fs::path second = save_checkpoint(run.path(), {2, "", "{}"}, saved, {});
  EXPECT_EQ(open_run_or_checkpoint(run.path()).step(), 2);
  EXPECT_EQ(open_run_or_checkpoint(step_dir(run.path(), 1)).step(), 1);
  fs::rename(second, run / "copy");
  EXPECT_EQ(open_run_or_checkpoint(run / "copy").step(), 2);
  fs::create_directories(run / "empty");
  EXPECT_EQ(message_of<UserError>([&] { open_run_or_checkpoint(run / "empty"); }),
            concat("'", (run / "empty").string(),
                   "' holds no checkpoint (neither manifest.json nor checkpoints/step-…); name a run or a "
                   "checkpoint folder"));
  EXPECT_EQ(message_of<UserError>([&] { open_run_or_checkpoint(run / "nowhere"); }),
            concat("'", (run / "nowhere").string(), "' does not exist; name a run or a checkpoint folder"));
}

}  // namespace
}  // namespace moebius::ckpt
