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
#include "ckpt/checkpoint.h"
#include "ckpt/hf/export.h"
#include "ckpt/hf/finite.h"
#include "ckpt/hf/import.h"
#include "ckpt/hf/piece_copy.h"
#include "ckpt/hf/quantised.h"
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
  const ModelFolder opened = ModelFolder::open(source());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model);
  decoder->params().allocate(plan.precision == "bf16" ? at::kBFloat16 : at::kFloat, at::kCPU);
  write_carried(plan, opened, folder.path() / "hf");
  EXPECT_TRUE(import_weights(plan, opened, decoder->params()).non_finite.empty());
  ExportOptions options;
  options.carried = folder.path() / "hf";
  export_model(plan.model, plan.precision, decoder->params(), folder.path() / "out", options);
  if (plan.quantisation.kind != Quantisation::Kind::none) {
    // Quantised weights come back widened: the same values, in a folder of plain bf16.
    const ModelFolder again = ModelFolder::open(folder.path() / "out");
    EXPECT_FALSE(again.config().has("quantization_config"));
    const ImportPlan second = plan_import(again);
    EXPECT_EQ(second.quantisation.kind, Quantisation::Kind::none);
    EXPECT_EQ(second.precision, "bf16");
    const auto other = moe::make_decoder(second.model);
    other->params().allocate(at::kBFloat16, at::kCPU);
    import_weights(second, again, other->params());
    for (const nn::Param& param : decoder->params().params())
      EXPECT_TRUE(at::equal(param.value, other->params().find(param.spec.name)->value)) << param.spec.name;
    return;
  }
  for (const char* const file : {"config.json", "generation_config.json", "model.safetensors"})
    EXPECT_EQ(read_file(folder.path() / "out" / file), read_file(source() / file)) << file;
}

TEST_P(EveryModel, is_written_to_a_checkpoint_as_it_is_read_into_memory) {
  const TestFolder folder;
  const ModelFolder opened = ModelFolder::open(source());
  const ImportPlan plan = plan_import(opened);
  const auto decoder = moe::make_decoder(plan.model), other = moe::make_decoder(plan.model);
  decoder->params().allocate(at::kFloat, at::kCPU);
  const ImportResult result = import_weights(plan, opened, decoder->params());
  int64_t progress = 0;
  ImportStream stream(plan, opened, other->params(), at::kFloat,
                      [&](int64_t num_bytes) { progress = num_bytes; });
  const std::vector<PendingGroup> groups{stream.group("model")};
  const Checkpoint written = Checkpoint::open(write_checkpoint(folder.path(), {}, groups, {}));
  EXPECT_EQ(stream.result().num_bytes, result.num_bytes);
  EXPECT_EQ(progress, result.num_bytes);
  TensorGroup group{"model", {}};
  for (const nn::Param& param : decoder->params().params())
    group.tensors.push_back({param.spec.name, param.value});
  const std::vector<at::Tensor> values = written.mapped(group);
  for (size_t i = 0; i < values.size(); ++i)
    EXPECT_TRUE(at::equal(values[i], group.tensors[i].tensor)) << group.tensors[i].name;
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
  EXPECT_THAT(refusal(), HasSubstr("the key \"b\" occurs twice in a"));
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

TEST_F(BrokenModel, sizes_that_no_model_has_are_refused_before_memory_is_taken) {
  edit_config([](json& config) { config["num_hidden_layers"] = 1'000'000'000'000; });
  EXPECT_THAT(refusal(), HasSubstr("num_hidden_layers is 1000000000000; allowed: 1 to 1000"));
  edit_config([](json& config) {
    config["num_hidden_layers"] = 900;
    config["num_local_experts"] = 1000;
  });
  EXPECT_THAT(refusal(), HasSubstr("describes 900 layers of 1000 experts, but there are only "));
  edit_config([](json& config) { config["num_local_experts"] = 5000; });
  EXPECT_THAT(refusal(), AllOf(HasSubstr("'model.moe.experts' is 5000"), HasSubstr("above its maximum")));
}

TEST_F(BrokenModel, methods_of_quantisation_that_are_not_read) {
  edit_config([](json& config) { config["quantization_config"] = {{"quant_method", "gptq"}}; });
  EXPECT_THAT(refusal(), AllOf(HasSubstr("quantization_config: weights quantised by 'gptq' are not read"),
                               HasSubstr("fp8"), HasSubstr("mxfp4")));
  edit_config([](json& config) {
    config["quantization_config"] = {{"quant_method", "fp8"}, {"fmt", "e4m3"}};
  });
  EXPECT_THAT(refusal(), HasSubstr("weight_block_size is []; two sizes are expected"));
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

// Copies of models with more than weights and their names, to be changed.
class PublishedModel : public testing::Test {
 protected:
  void SetUp() override {
    if (models().empty()) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  }
  fs::path copy(const std::string& name) const {
    fs::copy(models() / name, folder_.path() / name);
    return folder_.path() / name;
  }
  // The tensors of a folder's file as bytes, edited and written again.
  static void edit_tensors(const fs::path& model,
                           const std::function<void(std::map<std::string, std::string>&)>& edit) {
    const std::string bytes = read_file(model / "model.safetensors");
    const SafetensorsHeader header = parse_safetensors("f", std::as_bytes(std::span(bytes)));
    std::map<std::string, std::string> tensors;
    for (const TensorEntry& tensor : header.tensors)
      tensors[tensor.spec.name] = bytes.substr(tensor.begin, tensor.num_bytes);
    edit(tensors);
    std::vector<TensorSpec> specs;
    for (const TensorEntry& tensor : header.tensors)
      if (tensors.contains(tensor.spec.name)) specs.push_back(tensor.spec);
    const SafetensorsLayout layout = layout_safetensors(specs, {});
    std::ofstream file(model / "model.safetensors", std::ios::binary | std::ios::trunc);
    file << layout.head;
    for (const TensorEntry& tensor : layout.tensors) file << tensors.at(tensor.spec.name);
  }

  const TestFolder folder_;
};

TEST_F(PublishedModel, module_of_multi_token_prediction_that_is_not_in_the_folder_is_not_missed) {
  const fs::path model = copy("deepseek-v3-mtp");
  EXPECT_EQ(plan_import(ModelFolder::open(model)).model.mtp.depth, 1);
  edit_tensors(model, [](auto& tensors) {
    std::erase_if(tensors, [](const auto& tensor) { return tensor.first.starts_with("model.layers.2."); });
  });
  const ImportPlan plan = plan_import(ModelFolder::open(model));
  EXPECT_EQ(plan.model.mtp.depth, 0);
  EXPECT_TRUE(plan.notes.empty());
}

TEST_F(PublishedModel, copies_may_be_absent_and_are_compared_when_they_are_not) {
  const fs::path model = copy("glm4-moe-mtp");
  {
    const ModelFolder folder = ModelFolder::open(model);
    EXPECT_TRUE(differing_copies(plan_import(folder), folder).empty());
  }
  edit_tensors(model, [](auto& tensors) {
    tensors.erase("model.layers.2.embed_tokens.weight");
    tensors.at("model.layers.2.shared_head.head.weight")[0] ^= 1;
  });
  const ModelFolder folder = ModelFolder::open(model);
  EXPECT_THAT(differing_copies(plan_import(folder), folder),
              testing::ElementsAre("model.layers.2.shared_head.head.weight"));
}

TEST_F(PublishedModel, scales_that_are_missing_or_of_another_shape) {
  const fs::path fp8 = copy("deepseek-v3-fp8"), mxfp4 = copy("gpt-oss-mxfp4");
  const auto refusal = [](const fs::path& model) {
    return message_of([&] { plan_import(ModelFolder::open(model)); });
  };
  edit_tensors(fp8, [](auto& tensors) { tensors.erase("model.layers.0.mlp.up_proj.weight_scale_inv"); });
  EXPECT_THAT(refusal(fp8), HasSubstr("missing (1): 'model.layers.0.mlp.up_proj.weight_scale_inv'"));
  edit_tensors(mxfp4, [](auto& tensors) { tensors.erase("model.layers.1.mlp.experts.down_proj_scales"); });
  EXPECT_THAT(refusal(mxfp4), HasSubstr("missing (1): 'model.layers.1.mlp.experts.down_proj_scales'"));

  json config = json::parse(read_file(mxfp4 / "config.json"));
  config.erase("quantization_config");
  std::ofstream(mxfp4 / "config.json") << config;
  EXPECT_THAT(refusal(mxfp4),
              HasSubstr("gate_up_proj is quantised, but config.json has no quantization_config"));
  config = json::parse(read_file(fp8 / "config.json"));
  config["quantization_config"]["weight_block_size"] = {128, 128};
  std::ofstream(fp8 / "config.json") << config;
  EXPECT_THAT(refusal(fp8), HasSubstr("weight_scale_inv has the shape [2, 2], but [1, 1] is expected"));
}

TEST_F(PublishedModel, without_experts) {
  const fs::path model = copy("gpt-oss");
  json config = json::parse(read_file(model / "config.json"));
  config["num_local_experts"] = 0;
  std::ofstream(model / "config.json") << config;
  EXPECT_THAT(message_of([&] { plan_import(ModelFolder::open(model)); }),
              AllOf(HasSubstr("config.json describes a tensor without elements: model.layers.0.mlp."),
                    HasSubstr("a count or a width in it is 0")));
}

TEST(Quantised, every_fp8_code_is_what_libtorch_makes_of_it) {
  at::Tensor codes = at::arange(256, at::kInt).to(at::kByte).view({16, 16});
  const at::Tensor wide = widen_fp8_blocks(codes, at::full({2, 1}, 0.5F), 8, 32);
  const at::Tensor expected = (codes.view(at::kFloat8_e4m3fn).to(at::kFloat) * 0.5F).to(at::kBFloat16);
  EXPECT_TRUE(at::allclose(wide, expected, 0, 0, /*equal_nan=*/true));
  EXPECT_EQ(wide.isnan().sum().item<int64_t>(), 2);
}

TEST(Quantised, each_block_has_its_own_scale) {
  const at::Tensor codes = at::full({5, 7}, 0x38, at::kByte);  // 1.0
  const at::Tensor scales = at::arange(1, 7, at::kFloat).view({3, 2});
  const at::Tensor wide = widen_fp8_blocks(codes, scales, 2, 4);
  const at::Tensor expected =
      scales.repeat_interleave(2, 0).repeat_interleave(4, 1).narrow(0, 0, 5).narrow(1, 0, 7).to(
          at::kBFloat16);
  EXPECT_TRUE(at::equal(wide, expected));
}

TEST(Quantised, mxfp4_has_the_lower_half_of_a_byte_first) {
  at::Tensor blocks = at::zeros({1, 2, 16}, at::kByte);
  blocks[0][0][0] = 0x7A;   // -1 (code 10), then 6 (code 7)
  blocks[0][1][15] = 0x1F;  // -6, then 0.5
  at::Tensor scales = at::full({1, 2}, 127, at::kByte);
  scales[0][1] = 125;  // 2^-2
  const at::Tensor wide = widen_mxfp4(blocks, scales).to(at::kFloat);
  at::Tensor expected = at::zeros({1, 64});
  expected[0][0] = -1;
  expected[0][1] = 6;
  expected[0][62] = -1.5;
  expected[0][63] = 0.125;
  EXPECT_TRUE(at::equal(wide, expected));
}

TEST(Finite, one_value_is_found_wherever_it_is) {
  for (const at::ScalarType type : {at::kBFloat16, at::kHalf, at::kFloat, at::kDouble})
    for (const double bad :
         {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
          std::numeric_limits<double>::quiet_NaN()})
      for (const int64_t at : {0, 1, 4095, 4096, 9000}) {
        at::Tensor values = at::full({9001}, -6e4, type);
        const DType dtype = spec_of("x", values).dtype;
        const std::span<const std::byte> bytes(static_cast<const std::byte*>(values.const_data_ptr()),
                                               values.nbytes());
        EXPECT_TRUE(all_finite(dtype, bytes));
        values[at] = bad;
        EXPECT_FALSE(all_finite(dtype, bytes)) << type << " " << bad << " at " << at;
      }
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
