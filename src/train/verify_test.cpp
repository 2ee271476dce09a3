// Every model of tests/data/models is computed as Transformers computed it; a model that differs is found
// out.
#include "train/verify.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "ckpt/hf/model_folder.h"
#include "train/convert.h"
#include "train/model_files.h"
#include "train/quantise.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

fs::path golden_models() {
  const char* const root = std::getenv("MOEBIUS_SOURCE_DIR");
  return root == nullptr ? fs::path() : fs::path(root) / "tests/data/models";
}

std::vector<std::string> golden_names() {
  std::vector<std::string> names;
  if (!golden_models().empty())
    for (const fs::directory_entry& entry : fs::directory_iterator(golden_models()))
      names.push_back(entry.path().filename().string());
  return names;
}

class GoldenModel : public testing::TestWithParam<std::string> {};

TEST_P(GoldenModel, is_computed_as_transformers_computes_it) {
  const fs::path model = golden_models() / GetParam();
  const Verification result = verify({.model = model, .golden = model / "golden.safetensors"});
  EXPECT_GT(result.comparisons.size(), 20);
  for (const Comparison& row : result.comparisons)
    EXPECT_TRUE(row.passed()) << row.name << ": " << row.error << " of " << row.tolerance << " "
                              << row.measure;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, testing::ValuesIn(golden_names()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(GoldenModel);

class Verify : public testing::Test {
 protected:
  void SetUp() override {
    if (golden_models().empty()) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
    model_ = folder_.path() / "model";
    fs::copy(golden_models() / "mixtral-window", model_);
  }
  void replace_in_config(const std::string& from, const std::string& to) const {
    std::string text = read_file(model_ / "config.json");
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    std::ofstream(model_ / "config.json") << text.replace(at, from.size(), to);
  }
  std::vector<std::string> failures() const {
    std::vector<std::string> names;
    for (const Comparison& row :
         verify({.model = model_, .golden = model_ / "golden.safetensors"}).comparisons)
      if (!row.passed()) names.push_back(row.name);
    return names;
  }

  TestFolder folder_;
  fs::path model_;
};

TEST_F(Verify, finds_a_wrong_epsilon_and_a_wrong_window) {
  EXPECT_THAT(failures(), testing::IsEmpty());
  replace_in_config("\"rms_norm_eps\": 1e-05", "\"rms_norm_eps\": 1e-06");
  EXPECT_THAT(failures(), testing::Contains("logits"));
  replace_in_config("\"rms_norm_eps\": 1e-06", "\"rms_norm_eps\": 1e-05");
  replace_in_config("\"sliding_window\": 6", "\"sliding_window\": 7");
  EXPECT_THAT(failures(), testing::Contains("logits"));
}

TEST_F(Verify, refuses_the_golden_file_of_another_model) {
  const auto golden = golden_models() / "llama-tiny/golden.safetensors";
  try {
    verify({.model = model_, .golden = golden});
    FAIL() << "nothing was refused";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), HasSubstr("golden.safetensors"));
  }
}

TEST_F(Verify, bf16_is_near_enough) {
  const Verification result =
      verify({.model = model_, .golden = model_ / "golden.safetensors", .precision = "bf16"});
  for (const Comparison& row : result.comparisons) EXPECT_TRUE(row.passed()) << row.name << " " << row.error;
}

TEST_F(Verify, a_converted_model_is_a_run_that_loads_and_comes_back) {
  const fs::path run = folder_.path() / "run", out = folder_.path() / "out";
  const FromHfResult result = convert_from_hf({.from = model_, .to = run});
  EXPECT_EQ(result.architecture, "MixtralForCausalLM");
  EXPECT_EQ(result.config.train.precision, "fp32");
  const LoadedModel loaded = load_model(run, at::kCPU);
  EXPECT_EQ(loaded.step, 0);
  EXPECT_EQ(loaded.decoder->params().num_elements(), result.num_parameters);
  convert_to_hf({.from = run, .to = out});
  EXPECT_EQ(read_file(out / "model.safetensors"), read_file(model_ / "model.safetensors"));
  EXPECT_THROW(convert_from_hf({.from = model_, .to = run}), UserError);
  EXPECT_THROW(convert_to_hf({.from = run, .to = out}), UserError);
}

// The vocabulary of 61 is smaller than the tokenizer's: only what the run says of its tokenizer is looked at.
TEST_F(Verify, a_model_that_comes_with_a_tokenizer_keeps_it) {
  const fs::path run = folder_.path() / "run", source = folder_.path() / "with-tokenizer";
  fs::copy(model_, source);
  fs::copy(golden_models().parent_path() / "sentencepiece-test_model.model", source / "tokenizer.model");
  const FromHfResult result = convert_from_hf({.from = source, .to = run});
  EXPECT_FALSE(result.config.data.synthetic);
  EXPECT_EQ(result.config.data.tokenizer, "tokenizer.model");
  EXPECT_EQ(read_file(run / "tokenizer.model"), read_file(source / "tokenizer.model"));
  EXPECT_EQ(map_model(run).config.data.tokenizer, "tokenizer.model");
}

// Every value of the folder that a quantised run came from lies within half a step of what is written of it.
TEST_F(Verify, a_quantised_model_is_written_as_compressed_tensors_has_it) {
  const fs::path run = folder_.path() / "run";
  convert_from_hf({.from = model_, .to = run});
  const auto quantised = [&](const std::string& scheme) {
    QuantiseOptions options;
    options.from = run;
    options.to = folder_.path() / scheme;
    options.scheme = scheme;
    quantise_run(options);
    return options.to;
  };
  const auto source = ckpt::hf::ModelFolder::open(model_);
  for (const std::string scheme : {"int8-w8a8", "int8-w8a16"}) {
    SCOPED_TRACE(scheme);
    const fs::path out = folder_.path() / ("out-" + scheme);
    convert_to_hf({.from = quantised(scheme), .to = out});
    const auto folder = ckpt::hf::ModelFolder::open(out);
    const auto values = [](const auto& from, const std::string& name) {
      return reinterpret_cast<const float*>(from.bytes(from.entries().at(name)).data());
    };
    int num_modules = 0;
    for (const auto& [name, entry] : folder.entries()) {
      if (!name.ends_with(".weight_scale")) continue;
      ++num_modules;
      const std::string module = name.substr(0, name.size() - std::string("_scale").size());
      const auto& held = source.entries().at(module);
      const int64_t rows = held.spec.shape[0], width = held.spec.shape[1];
      const float* const wanted = values(source, module);
      const float* const scales = values(folder, name);
      const bool is_packed = scheme != "int8-w8a8";
      const auto& codes_entry = folder.entries().at(is_packed ? module + "_packed" : module);
      EXPECT_EQ(codes_entry.spec.dtype, is_packed ? ckpt::DType::i32 : ckpt::DType::i8);
      // The bytes of words lie in the order of their codes.
      const auto* const bytes = reinterpret_cast<const uint8_t*>(folder.bytes(codes_entry).data());
      for (int64_t i = 0; i < rows * width; ++i) {
        const int code = is_packed ? bytes[i] - 128 : static_cast<int8_t>(bytes[i]);
        const float scale = scales[i / width];
        ASSERT_NEAR(static_cast<float>(code) * scale, wanted[i], 0.5001f * scale) << module << " " << i;
      }
    }
    EXPECT_GT(num_modules, 8);
    const std::string config = read_file(out / "config.json");
    EXPECT_THAT(config, HasSubstr("\"quant_method\": \"compressed-tensors\""));
    EXPECT_THAT(config, HasSubstr("block_sparse_moe.gate"));
  }
  const fs::path int4 = quantised("int4-w4a16");
  EXPECT_THAT(message_of<UserError>([&] { convert_to_hf({.from = int4, .to = folder_.path() / "never"}); }),
              HasSubstr("no multiple of 128"));
  EXPECT_FALSE(fs::exists(folder_.path() / "never"));
}

TEST_F(Verify, tokens_that_end_a_text_are_read_from_what_came_with_the_model) {
  const fs::path run = folder_.path() / "run";
  EXPECT_TRUE(carried_end_ids(folder_.path(), 61).empty());
  convert_from_hf({.from = model_, .to = run});
  const auto put = [&](const char* file, const char* text) {
    std::ofstream(run / "hf" / file, std::ios::trunc) << text;
  };
  EXPECT_EQ(carried_end_ids(run, 61), std::vector<int64_t>{2});
  put("generation_config.json", R"({"eos_token_id": [3, 7, 60]})");
  EXPECT_EQ(carried_end_ids(run, 61), (std::vector<int64_t>{3, 7, 60}));
  put("generation_config.json", "{}");
  EXPECT_EQ(carried_end_ids(run, 61), std::vector<int64_t>{2});  // of config.json
  put("generation_config.json", R"({"eos_token_id": [3, 61]})");
  try {
    carried_end_ids(run, 61);
    FAIL() << "nothing was refused";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), HasSubstr("eos_token_id names the token 61, but the vocabulary has 61"));
  }
}

TEST_F(Verify, quantised_weights_and_a_module_of_multi_token_prediction_become_a_run_and_come_back) {
  const fs::path run = folder_.path() / "fp8", out = folder_.path() / "fp8-out";
  const FromHfResult fp8 = convert_from_hf({.from = golden_models() / "deepseek-v3-fp8", .to = run});
  EXPECT_EQ(fp8.config.train.precision, "bf16");
  EXPECT_THAT(fp8.notes, testing::Contains(HasSubstr("tensors in fp8 (e4m3, blocks) become bf16")));
  convert_to_hf({.from = run, .to = out});
  // The widened weights compute what the quantised ones did.
  const auto golden = golden_models() / "deepseek-v3-fp8/golden.safetensors";
  EXPECT_TRUE(verify({.model = out, .golden = golden}).passed());

  const fs::path model = golden_models() / "glm4-moe-mtp", trained = folder_.path() / "mtp";
  const FromHfResult mtp = convert_from_hf({.from = model, .to = trained});
  EXPECT_EQ(mtp.config.model.mtp.depth, 1);
  EXPECT_TRUE(mtp.notes.empty());
  convert_to_hf({.from = trained, .to = folder_.path() / "mtp-out"});
  for (const char* const file : {"model.safetensors", "config.json"})
    EXPECT_EQ(read_file(folder_.path() / "mtp-out" / file), read_file(model / file)) << file;
}

TEST_F(Verify, an_upcycled_model_computes_what_the_dense_one_did) {
  const fs::path dense = folder_.path() / "dense", routed = folder_.path() / "routed";
  convert_from_hf({.from = golden_models() / "llama-tiny", .to = dense});
  const UpcycleResult result = convert_upcycle({.from = dense, .to = routed, .experts = 4, .top_k = 2});
  EXPECT_GT(result.parameters_after, 2 * result.parameters_before);
  const LoadedModel before = load_model(dense, at::kCPU), after = load_model(routed, at::kCPU);
  const at::Tensor tokens_T = at::arange(20, at::kLong) * 5 % 128;
  nn::KvCache cache_before = before.decoder->make_cache(32), cache_after = after.decoder->make_cache(32);
  const at::Tensor want_V = before.decoder->next_logits(tokens_T, cache_before);
  const at::Tensor have_V = after.decoder->next_logits(tokens_T, cache_after);
  EXPECT_LE((have_V - want_V).abs().max().item<float>(), 1e-5f * want_V.abs().max().item<float>());
}

}  // namespace
}  // namespace moebius::train
