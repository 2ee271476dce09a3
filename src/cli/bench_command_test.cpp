#include "cli/bench_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/parallel.h"
#include "base/test_folder.h"
#include "cli/command_output.h"
#include "ops/device.h"

namespace moebius::cli {
namespace {

using ops::cases::OpCase;
using ops::cases::Size;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

// What `moebius bench ARGUMENTS` prints on stdout; the text of a UserError after "error: ".
std::string run(const std::string& arguments) {
  return output_of(add_bench_command, "bench " + arguments);
}

std::vector<std::string> names(const std::vector<std::string>& words, bool with_large) {
  std::vector<std::string> all;
  for (const OpCase* op_case : select_cases(words, with_large)) all.push_back(op_case->name);
  return all;
}

TEST(BenchCommand, lists_every_case_with_its_dtypes) {
  const std::string list = run("--list");
  for (const OpCase& op_case : ops::cases::all_cases()) EXPECT_THAT(list, HasSubstr(op_case.name + " "));
  EXPECT_THAT(list, HasSubstr("fp32,bf16"));
}

TEST(BenchCommand, selects_by_name_operator_and_pattern) {
  EXPECT_EQ(names({"swiglu/r33_f41"}, false), std::vector<std::string>{"swiglu/r33_f41"});
  const auto by_op = names({"rms_norm"}, false);
  EXPECT_EQ(by_op, names({"rms_norm/*"}, false));
  EXPECT_GT(by_op.size(), 5u);
  EXPECT_THAT(by_op, testing::Each(testing::StartsWith("rms_norm/")));
  EXPECT_EQ(names({"swiglu/r33_f41", "swiglu/r33*", "rms_norm/t1_d3"}, false),
            (std::vector<std::string>{"rms_norm/t1_d3", "swiglu/r33_f41"}));
}

TEST(BenchCommand, takes_large_cases_on_the_cpu_only_by_their_full_name) {
  for (const OpCase* op_case : select_cases({"*"}, false)) EXPECT_NE(op_case->size, Size::large);
  EXPECT_EQ(select_cases({"*"}, true).size(), ops::cases::all_cases().size());
  EXPECT_EQ(names({"rms_norm/t16384_d4096"}, false).size(), 1u);
}

TEST(BenchCommand, refuses_an_unknown_case_and_offers_the_nearest) {
  EXPECT_EQ(run("swiglu/r33_f42 --device cpu"),
            "error: no op case is called 'swiglu/r33_f42'; did you mean 'swiglu/r33_f41'? (moebius bench "
            "--list)");
  EXPECT_THAT(run("swigul --device cpu"), HasSubstr("did you mean 'swiglu'?"));
  EXPECT_EQ(run("nothing_at_all_like_it --device cpu"),
            "error: no op case is called 'nothing_at_all_like_it' (moebius bench --list)");
}

TEST(BenchCommand, asks_for_a_case_when_none_is_named) {
  EXPECT_THAT(run(""), AllOf(HasSubstr("error: bench needs the name of a case"), HasSubstr("--list")));
}

TEST(BenchCommand, refuses_a_dtype_that_the_cases_do_not_have) {
  EXPECT_EQ(run("route --dtype bf16 --device cpu"),
            "error: none of the chosen cases runs in bf16 on the CPU; see moebius bench --list");
}

TEST(BenchCommand, refuses_a_gpu_that_is_absent) {
  if (ops::cuda_plugin() != nullptr) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_THAT(run("swiglu --device cuda"),
              AllOf(HasSubstr("error: device 'cuda' was asked for"), HasSubstr("--device cpu")));
}

TEST(BenchCommand, prints_a_line_per_case_and_dtype) {
  const std::string text = run("swiglu/r33_f41 --repeats 3 --device cpu --check");
  EXPECT_THAT(text, AllOf(HasSubstr("medians of 3"), HasSubstr("fp32"), HasSubstr("bf16"), HasSubstr("GB/s"),
                          HasSubstr("error "), Not(HasSubstr("FAILED"))));
}

TEST(BenchCommand, prints_json_with_the_errors_of_a_check) {
  const auto json =
      nlohmann::json::parse(run("linear/r51_n5_k3 --repeats 2 --device cpu --json --check --dtype bf16"));
  EXPECT_EQ(json["device"], "cpu");
  EXPECT_EQ(json["threads"], num_threads());
  EXPECT_EQ(json["repeats"], 2);
  ASSERT_EQ(json["results"].size(), 1u);
  const auto& result = json["results"][0];
  EXPECT_EQ(result["case"], "linear/r51_n5_k3");
  EXPECT_EQ(result["dtype"], "bf16");
  EXPECT_GT(result["forward_ms"], 0.0);
  EXPECT_GT(result["forward_backward_ms"], 0.0);
  EXPECT_GT(result["flops_per_second"], 0.0);
  EXPECT_LE(result["error"], result["tolerance"]);
  EXPECT_EQ(result["passed"], true);
}

TEST(BenchCommand, has_no_backward_time_for_an_op_without_gradients) {
  const auto json = nlohmann::json::parse(run("global_norm/n1 --repeats 1 --device cpu --json"));
  for (const auto& result : json["results"]) {
    EXPECT_FALSE(result.contains("forward_backward_ms"));
    EXPECT_FALSE(result.contains("error"));
  }
}

}  // namespace
}  // namespace moebius::cli
