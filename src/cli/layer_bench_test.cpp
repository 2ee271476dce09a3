#include "cli/layer_bench.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/test_folder.h"
#include "cli/bench_command.h"
#include "cli/command_output.h"
#include "cli/kernel_profile.h"
#include "cli/layer_shapes.h"
#include "cli/product_tuning.h"
#include "config/dump.h"
#include "config/load.h"

namespace moebius::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string run_bench(const std::string& arguments) {
  return output_of(add_bench_command, "bench " + arguments);
}

nlohmann::json json_of(const std::string& arguments) {
  return nlohmann::json::parse(run_bench(arguments + " --json"));
}

TEST(LayerBench, steps_have_the_sizes_of_the_benchmark_configs) {
  const std::filesystem::path root = std::getenv("MOEBIUS_SOURCE_DIR");
  for (const auto& [shape, file] : std::vector<std::pair<std::string, std::string>>{
           {"mixtral", "mixtral-2l"}, {"olmoe", "olmoe-6l"}, {"qwen3-30b", "qwen3-4l"}}) {
    const config::RunConfig from_file =
        config::load_run_config(root / "configs" / "bench" / (file + ".toml"));
    EXPECT_EQ(config::describe_differences(config::diff(step_config(find_layer_shape(shape)), from_file)), "")
        << file;
  }
}

TEST(LayerBench, layers_agree_with_their_references_in_both_dtypes) {
  for (const std::string layer : {"moe_layer", "attention", "linear_ce", "adamw"}) {
    for (const std::string dtype : {"fp32", "bf16"}) {
      const auto json = json_of(layer + " --shape tiny --device cpu --repeats 1 --check --dtype " + dtype);
      ASSERT_EQ(json["results"].size(), 1u) << layer;
      const auto& result = json["results"][0];
      EXPECT_EQ(result["passed"], true) << result;
      EXPECT_GT(result["error"], 0.0) << layer << " is compared with itself";
      // AdamW works in place.
      EXPECT_EQ(result["extra_peak_bytes"].get<int64_t>() > 0, layer != "adamw") << layer;
    }
  }
}

TEST(LayerBench, counts_the_experts_as_the_peers_do) {
  const auto json = json_of("moe_layer --shape tiny --tokens 128 --device cpu --repeats 3");
  const auto& result = json["results"][0];
  const double flops = 6.0 * 128 * 2 * 64 * 48;
  EXPECT_NEAR(result["forward_tflops"].get<double>() * result["forward_ms"].get<double>() * 1e9, flops,
              flops * 1e-6);
  EXPECT_NEAR(
      result["forward_backward_tflops"].get<double>() * result["forward_backward_ms"].get<double>() * 1e9,
      3 * flops, flops * 1e-6);
  // Held for the backward pass: the output and the pre-activation, nothing that grows with K beyond it.
  const int64_t held = result["held_bytes"].get<int64_t>();
  EXPECT_GE(held, 2 * (128 * 64 + 128 * 2 * 2 * 48));
  EXPECT_LE(held, 2 * (128 * 64 + 128 * 2 * 2 * 48) + 4096);
}

TEST(LayerBench, steps_repeat_and_take_overrides) {
  const auto json = json_of(
      "step --shape tiny --device cpu --repeats 2 --check --set train.micro_batch=2 --set "
      "train.recompute=full");
  const auto& result = json["results"][0];
  EXPECT_EQ(result["repeats_exactly"], true);
  EXPECT_EQ(result["tokens"], 256);
  EXPECT_NEAR(result["loss"].get<double>(), std::log(256.0), 0.3);
  EXPECT_GT(result["peak_memory_bytes"], 0);
}

TEST(LayerBench, writes_a_file_beside_the_text) {
  const TestFolder folder;
  const std::string file = (folder.path() / "bench.json").string();
  EXPECT_THAT(run_bench("moe_layer --shape tiny --device cpu --repeats 1 --json " + file),
              AllOf(HasSubstr("moe_layer"), HasSubstr("tiny"), HasSubstr("FLOP/s")));
  const auto json = nlohmann::json::parse(read_file(file));
  EXPECT_EQ(json["results"][0]["shape"], "tiny");
  EXPECT_GT(json["product_tflops"], 0.0);
}

TEST(LayerBench, knows_the_kernels_of_libraries_by_name) {
  EXPECT_EQ(phase_of("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_7_64x64x128_4x1x1"),
            "attention");
  EXPECT_EQ(
      phase_of(
          "void cutlass::device_kernel<at::cuda::detail::enable_3x_kernel_for_sm9x<cutlass::gemm::kernel::"
          "GemmUniversal<cutlass::gemm::GroupProblemShape<cute::tuple<int, int, int>>>>>"),
      "grouped products");
  EXPECT_EQ(phase_of("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT"), "dense products");
  EXPECT_EQ(phase_of("void moebius::kernels::cuda::(anonymous namespace)::adamw_kernel<__nv_bfloat16>(int)"),
            "optimizer");
  EXPECT_EQ(phase_of("something_new"), "other");
}

TEST(LayerBench, profiles_what_runs) {
  const auto json = json_of("linear_ce --shape tiny --device cpu --repeats 1 --kernels 3");
  const auto& kernels = json["results"][0]["kernels"];
  ASSERT_GT(kernels.size(), 0u);
  EXPECT_GT(kernels[0]["ms"], 0.0);
  EXPECT_THAT(run_bench("step --shape tiny --device cpu --repeats 1 --kernels"),
              HasSubstr("the longest kernels"));
}

TEST(LayerBench, refuses_what_it_has_no_sizes_for) {
  EXPECT_THAT(
      run_bench("moe_layer --shape qwen3-30 --device cpu"),
      AllOf(HasSubstr("error: --shape qwen3-30 is not known; did you mean qwen3-30b?"), HasSubstr("olmoe")));
  EXPECT_THAT(run_bench("attention --shape dsv2-lite --device cpu"), HasSubstr("has no attention"));
  EXPECT_THAT(run_bench("step --shape sonic-1536 --device cpu"),
              HasSubstr("has no training step; choose mixtral"));
  EXPECT_THAT(run_bench("swiglu --shape tiny --device cpu"),
              HasSubstr("'swiglu' is no layer that takes --shape"));
  EXPECT_THAT(run_bench("attention --shape tiny --tokens 100 --device cpu"),
              HasSubstr("no multiple of the sequence"));
  EXPECT_THAT(run_bench("moe_layer --shape tiny --tune --device cpu"), HasSubstr("this run is on the CPU"));
}

// Times of which every way is as fast as said.
LayerProductTimes product_times(double plain_ms, double routed_ms, double other_ms, double copy_ms) {
  using kernels::GroupedGemmKind;
  using ops::RoutedOperand;
  LayerProductTimes t{};
  t.copy_ms = copy_ms;
  const auto set = [&](ProductTimes& times, GroupedGemmKind kind, RoutedOperand routed, int64_t n, int64_t k,
                       bool activated = false) {
    const bool plain = routed == RoutedOperand::none;
    const double ms = plain ? plain_ms : routed_ms;
    times = {{kind, activated, routed, n, k, 8, 1024},
             {{"slow", 2 * ms}, {"fast", ms}},
             plain ? other_ms : std::numeric_limits<double>::infinity()};
  };
  constexpr auto kNone = RoutedOperand::none;
  set(t.up, GroupedGemmKind::forward, kNone, 96, 64, true);
  set(t.routed_up, GroupedGemmKind::forward, RoutedOperand::a, 96, 64, true);
  set(t.up_again, GroupedGemmKind::forward, kNone, 96, 64);
  set(t.routed_up_again, GroupedGemmKind::forward, RoutedOperand::a, 96, 64);
  set(t.down, GroupedGemmKind::forward, kNone, 64, 48);
  set(t.grad_up, GroupedGemmKind::input_grad, kNone, 96, 64);
  set(t.grad_down, GroupedGemmKind::input_grad, kNone, 64, 48);
  set(t.routed_grad_down, GroupedGemmKind::input_grad, RoutedOperand::a, 64, 48);
  set(t.weight_down, GroupedGemmKind::weight_grad, kNone, 64, 48);
  set(t.routed_weight_down, GroupedGemmKind::weight_grad, RoutedOperand::a, 64, 48);
  set(t.weight_up, GroupedGemmKind::weight_grad, kNone, 96, 64);
  set(t.routed_weight_up, GroupedGemmKind::weight_grad, RoutedOperand::b, 96, 64);
  return t;
}

ops::ProductTable table_of(const LayerProductTimes& times) {
  ops::ProductTable table;
  for (const ops::ProductTable::Entry& entry : fastest_ways(times)) table.add(entry);
  return table;
}

TEST(ProductTuning, takes_the_fastest_way_of_each_product) {
  const LayerProductTimes times = product_times(1.0, 1.5, 3.0, 0.6);
  const ops::ProductTable table = table_of(times);
  EXPECT_EQ(table.entries().size(), 12u);
  EXPECT_EQ(*table.find(times.down.key), (ops::ProductWay{false, "fast"}));
  EXPECT_EQ(*table.find(times.routed_up.key), (ops::ProductWay{false, "fast"}));
  EXPECT_EQ(*table.find(times.routed_weight_up.key), (ops::ProductWay{false, "fast"}));
}

TEST(ProductTuning, takes_libtorch_where_it_is_faster) {
  const LayerProductTimes times = product_times(1.0, 1.5, 0.9, 0.7);
  EXPECT_EQ(*table_of(times).find(times.weight_up.key), ops::ProductWay{});
  EXPECT_EQ(*table_of(times).find(times.up.key), ops::ProductWay{});
}

TEST(ProductTuning, one_copy_of_the_gradient_serves_two_products) {
  // A copy costs more than one product gains by it, and less than two do.
  const LayerProductTimes times = product_times(1.0, 1.5, 3.0, 0.6);
  const ops::ProductTable table = table_of(times);
  EXPECT_TRUE(table.find(times.routed_grad_down.key)->copy_rows);
  EXPECT_TRUE(table.find(times.routed_weight_down.key)->copy_rows);
  EXPECT_FALSE(table_of(product_times(1.0, 1.2, 3.0, 0.6)).find(times.routed_weight_down.key)->copy_rows);
}

}  // namespace
}  // namespace moebius::cli
