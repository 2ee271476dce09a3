// Reading and writing model folders: the tensors of every family, and everything that can be wrong with a
// folder.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "ckpt/hf/export.h"
#include "ckpt/hf/import.h"
#include "ckpt/hf/piece_copy.h"
#include "ckpt/tensor_bytes.h"
#include "moe/moe_feed_forward.h"

namespace moebius::ckpt::hf {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

fs::path models() {
  const char* const root = std::getenv("MOEBIUS_SOURCE_DIR");
  return root == nullptr ? fs::path() : fs::path(root) / "tests/data/models";
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  if (!models().empty())
    for (const fs::directory_entry& entry : fs::directory_iterator(models()))
      names.push_back(entry.path().filename().string());
  return names;
}

std::string message_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const UserError& error) {
    return error.what();
  }
  return "nothing was refused";
}

class EveryModel : public testing::TestWithParam<std::string> {
 protected:
  fs::path source() const { return models() / GetParam(); }
};

TEST_P(EveryModel, is_made_of_pieces_that_cover_each_parameter_once) {
  const ImportPlan plan = plan_import(ModelFolder::open(source()));
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  const at::NoGradGuard no_grad;
  for (nn::Param& param : decoder->params().params()) param.value.zero_();
  for (const Piece& piece : plan.pieces) {
    if (piece.is_copy) continue;
    nn::Param* const param = decoder->params().find(piece.param);
    ASSERT_NE(param, nullptr) << piece.name << " names " << piece.param;
    view_of(piece, param->value).add_(1);
  }
  for (const nn::Param& param : decoder->params().params())
    EXPECT_TRUE(at::equal(param.value, at::ones_like(param.value))) << param.spec.name;
}

TEST_P(EveryModel, comes_back_with_the_same_bytes) {
  const TestFolder folder;
  ModelFolder opened = ModelFolder::open(source());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  write_carried(plan, opened, folder.path() / "hf");
  EXPECT_TRUE(import_weights(plan, opened, decoder->params()).non_finite.empty());
  ExportOptions options;
  options.carried = folder.path() / "hf";
  export_model(plan.model, "fp32", decoder->params(), folder.path() / "out", options);
  for (const char* const file : {"config.json", "generation_config.json", "model.safetensors"})
    EXPECT_EQ(read_file(folder.path() / "out" / file), read_file(source() / file)) << file;
}

TEST_P(EveryModel, comes_back_in_shards_and_without_its_config) {
  const TestFolder folder;
  ModelFolder opened = ModelFolder::open(source());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  import_weights(plan, opened, decoder->params());
  ExportOptions options;
  options.shard_bytes = 40'000;
  options.max_positions = 512;
  export_model(plan.model, "fp32", decoder->params(), folder.path() / "out", options);

  ModelFolder again = ModelFolder::open(folder.path() / "out");
  EXPECT_GT(again.files().size(), 1);
  const ImportPlan second = plan_import(again);
  EXPECT_EQ(second.family, plan.family);
  const auto other = moe::make_decoder(second.model);
  other->params().allocate(at::kFloat, at::kCPU);
  import_weights(second, again, other->params());
  for (const nn::Param& param : decoder->params().params())
    EXPECT_TRUE(at::equal(param.value, other->params().find(param.spec.name)->value)) << param.spec.name;
}

INSTANTIATE_TEST_SUITE_P(Models, EveryModel, testing::ValuesIn(model_names()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(EveryModel);

// A copy of a small model that each test breaks in its own way.
class BrokenModel : public testing::Test {
 protected:
  void SetUp() override {
    if (models().empty()) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
    fs::copy(models() / "mixtral-window", path());
  }
  fs::path path() const { return folder_.path() / "model"; }
  void put(const std::string& file, const std::string& contents) const {
    std::ofstream(path() / file, std::ios::binary | std::ios::trunc) << contents;
  }
  void edit_config(const std::function<void(json&)>& edit) const {
    json config = json::parse(read_file(path() / "config.json"));
    edit(config);
    put("config.json", config.dump());
  }
  std::string refusal() const {
    return message_of([&] { plan_import(ModelFolder::open(path())); });
  }
  // The file with the header's JSON edited; data stays.
  void edit_header(const std::function<void(json&)>& edit) const {
    const std::string bytes = read_file(path() / "model.safetensors");
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    const std::string data = bytes.substr(8 + length);
    json header = json::parse(bytes.substr(8, length));
    edit(header);
    const std::string text = header.dump();
    length = text.size();
    put("model.safetensors", std::string(reinterpret_cast<const char*>(&length), 8) + text + data);
  }

  const TestFolder folder_;
};

TEST_F(BrokenModel, folder_without_config_or_weights) {
  fs::remove(path() / "model.safetensors");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("model.safetensors"), HasSubstr("holds neither")));
  fs::remove(path() / "config.json");
  EXPECT_THAT(refusal(), HasSubstr("holds no config.json"));
  EXPECT_THAT(message_of([&] { ModelFolder::open(path() / "nowhere"); }), HasSubstr("is not a folder"));
}

TEST_F(BrokenModel, config_that_is_not_json_or_says_things_twice) {
  put("config.json", "{\"model_type\": ");
  EXPECT_THAT(refusal(), HasSubstr("config.json is not JSON"));
  put("config.json", R"({"model_type": "llama", "a": {"b": 1, "b": 2}})");
  EXPECT_THAT(refusal(), HasSubstr("the key 'b' occurs twice"));
  put("config.json", "[1, 2]");
  EXPECT_THAT(refusal(), HasSubstr("not a JSON object but array"));
  put("config.json", std::string(100'000, '['));
  EXPECT_THAT(refusal(), HasSubstr("more than 100 levels"));
}

TEST_F(BrokenModel, unknown_model_type_lists_the_known) {
  edit_config([](json& config) { config["model_type"] = "gpt2"; });
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("'gpt2'"), HasSubstr("deepseek_v3, glm4_moe, gpt_oss, llama, mixtral, olmoe")));
}

TEST_F(BrokenModel, fields_that_are_missing_or_of_another_kind) {
  edit_config([](json& config) { config.erase("hidden_size"); });
  EXPECT_THAT(refusal(), HasSubstr("the field 'hidden_size' is missing"));
  edit_config([](json& config) { config["hidden_size"] = "big"; });
  EXPECT_THAT(refusal(), HasSubstr("'hidden_size' is \"big\"; an integer is expected"));
  edit_config([](json& config) {
    config["hidden_size"] = 32;
    config["hidden_act"] = "relu";
  });
  EXPECT_THAT(refusal(), HasSubstr("hidden_act = \"relu\" is not supported; only 'silu' is"));
}

TEST_F(BrokenModel, unsupported_rope_type) {
  edit_config([](json& config) { config["rope_parameters"] = {{"rope_type", "longrope"}}; });
  EXPECT_THAT(refusal(), AllOf(HasSubstr("'longrope'"), HasSubstr("linear, dynamic, yarn and llama3")));
}

TEST_F(BrokenModel, older_spelling_of_rope_is_read) {
  edit_config([](json& config) {
    config.erase("rope_parameters");
    config["rope_theta"] = 777.0;
    config["rope_scaling"] = {{"type", "linear"}, {"factor", 3.0}};
  });
  const ImportPlan plan = plan_import(ModelFolder::open(path()));
  EXPECT_EQ(plan.model.rope_theta, 777.0);
  EXPECT_EQ(plan.model.rope.scaling, "linear");
  EXPECT_EQ(plan.model.rope.factor, 3.0);
}

TEST_F(BrokenModel, missing_extra_and_misshapen_tensors_are_listed) {
  edit_config([](json& config) { config["num_local_experts"] = 6; });
  EXPECT_THAT(refusal(), AllOf(HasSubstr("missing (6): "), HasSubstr("block_sparse_moe.experts.5.w1.weight"),
                               HasSubstr("gate.weight has the shape [5, 32], but [6, 32] is expected")));
  edit_config([](json& config) { config["num_local_experts"] = 4; });
  EXPECT_THAT(refusal(), HasSubstr("not expected (6): "));
}

TEST_F(BrokenModel, truncated_weights) {
  fs::resize_file(path() / "model.safetensors", fs::file_size(path() / "model.safetensors") - 4);
  EXPECT_THAT(refusal(), HasSubstr("model.safetensors"));
  fs::resize_file(path() / "model.safetensors", 5);
  EXPECT_THAT(refusal(), HasSubstr("model.safetensors"));
}

TEST_F(BrokenModel, type_of_weights_that_is_not_read) {
  edit_header([](json& header) {
    json& norm = header["model.norm.weight"];
    norm["dtype"] = "I32";
  });
  EXPECT_THAT(refusal(), HasSubstr("model.norm.weight is of the type I32"));
}

TEST_F(BrokenModel, index_that_lies) {
  const auto index = [&](const json& map) {
    put("model.safetensors.index.json", json{{"weight_map", map}}.dump());
    return refusal();
  };
  EXPECT_THAT(index({{"model.norm.weight", "gone.safetensors"}}),
              HasSubstr("names the shard 'gone.safetensors', which is not there"));
  EXPECT_THAT(index({{"no.such.tensor", "model.safetensors"}}),
              HasSubstr("says that 'no.such.tensor' is in 'model.safetensors', but it is not there"));
  EXPECT_THAT(index({{"model.norm.weight", "../model.safetensors"}}),
              HasSubstr("is not the name of a file in the same folder"));
  EXPECT_THAT(index(json::object()), HasSubstr("names no tensor"));
  EXPECT_THAT(index({{"model.norm.weight", 3}}), HasSubstr("is not a text"));
}

TEST_F(BrokenModel, tensor_in_two_shards) {
  fs::copy(path() / "model.safetensors", path() / "again.safetensors");
  put("model.safetensors.index.json",
      json{{"weight_map",
            {{"model.norm.weight", "model.safetensors"}, {"lm_head.weight", "again.safetensors"}}}}
          .dump());
  EXPECT_THAT(refusal(), HasSubstr("is in two files"));
}

TEST_F(BrokenModel, values_that_are_not_finite_are_named) {
  std::string bytes = read_file(path() / "model.safetensors");
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(bytes.data() + bytes.size() - 4, &nan, 4);
  put("model.safetensors", bytes);
  ModelFolder opened = ModelFolder::open(path());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  EXPECT_EQ(import_weights(plan, opened, decoder->params()).non_finite.size(), 1);
}

TEST_F(BrokenModel, half_precision_is_kept_exactly_both_ways) {
  ModelFolder opened = ModelFolder::open(path());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kBFloat16, at::kCPU);
  import_weights(plan, opened, decoder->params());
  export_model(plan.model, "bf16", decoder->params(), folder_.path() / "bf16", {});
  ModelFolder half = ModelFolder::open(folder_.path() / "bf16");
  const ImportPlan second = plan_import(half);
  EXPECT_EQ(second.precision, "bf16");
  for (const auto& [name, entry] : half.entries()) EXPECT_EQ(entry.spec.dtype, DType::bf16) << name;
  write_carried(second, half, folder_.path() / "hf");
  const auto other = moe::make_decoder(second.model);
  other->params().allocate(at::kBFloat16, at::kCPU);
  import_weights(second, half, other->params());
  ExportOptions options;
  options.carried = folder_.path() / "hf";
  export_model(second.model, "bf16", other->params(), folder_.path() / "again", options);
  EXPECT_EQ(read_file(folder_.path() / "again/model.safetensors"),
            read_file(folder_.path() / "bf16/model.safetensors"));
}

TEST_F(BrokenModel, full_disk_leaves_nothing_behind) {
  ModelFolder opened = ModelFolder::open(path());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  import_weights(plan, opened, decoder->params());
  {
    const ScopedDiskLimit limit(50'000);
    EXPECT_THAT(
        message_of([&] { export_model(plan.model, "fp32", decoder->params(), folder_.path() / "out", {}); }),
        HasSubstr("disk is full"));
  }
  EXPECT_FALSE(fs::exists(folder_.path() / "out"));
  EXPECT_FALSE(fs::exists(folder_.path() / ".out.partial"));
}

TEST(Families, say_what_they_cannot_express) {
  config::ModelConfig model;
  model.vocab = 64;
  model.moe.experts = 4;
  model.moe.score = "sigmoid";
  EXPECT_THAT(message_of([&] { config_text(family_named("mixtral"), model, DType::f32, 128); }),
              HasSubstr("model.moe.score: \"sigmoid\" -> \"softmax\""));
  EXPECT_THAT(message_of([] { family_named("mistral"); }), HasSubstr("known are deepseek_v2, "));
}

}  // namespace
}  // namespace moebius::ckpt::hf
