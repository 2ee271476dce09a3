// Runs with precision.experts = "int8": how they learn, resume and are refused.
#include "train/int8_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "train/test_run.h"

namespace moebius::train {
namespace {

using testing::HasSubstr;

TrainOptions int8_run(const TestFolder& folder, const std::string& name, int64_t steps) {
  TrainOptions options = tiny_run(folder, name, steps);
  options.config.precision.experts = "int8";
  return options;
}

TEST(Int8Experts, learn_as_floats_do) {
  const TestFolder folder;
  const TrainResult floats = train(tiny_run(folder, "float", 60));
  const TrainResult codes = train(int8_run(folder, "int8", 60));
  ASSERT_TRUE(floats.validation_loss && codes.validation_loss);
  EXPECT_NE(*codes.validation_loss, *floats.validation_loss) << "the experts are still floats";
  // The project's bar, docs/int8.md.
  EXPECT_NEAR(*codes.validation_loss, *floats.validation_loss, 0.01);
}

TEST(Int8Experts, a_resumed_run_goes_on_as_if_nothing_had_been) {
  const TestFolder folder;
  const TrainResult whole = train(int8_run(folder, "whole", 8));
  TrainOptions first = int8_run(folder, "parts", 4);
  train(first);
  first.config.train.steps = 8;
  first.mode = RunMode::resume;
  const TrainResult resumed = train(first);
  EXPECT_EQ(*resumed.validation_loss, *whole.validation_loss);
}

TEST(Int8Experts, what_cannot_be_served_is_refused) {
  config::RunConfig config;
  config.model.moe.experts = 4;
  EXPECT_NO_THROW(check_precision(config, 8));
  config.precision.experts = "int8";
  EXPECT_NO_THROW(check_precision(config, 1));
  const auto mistake = [](const config::RunConfig& wrong, int64_t processes) -> std::string {
    try {
      check_precision(wrong, processes);
    } catch (const UserError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THAT(mistake(config, 8), HasSubstr("8 processes of this run; train with one process"));
  config::RunConfig other = config;
  other.quant.scheme = "int8";
  EXPECT_THAT(mistake(other, 1), HasSubstr("set quant.scheme = 'none'"));
  other = config;
  other.model.moe.expert_bias = true;
  EXPECT_THAT(mistake(other, 1), HasSubstr("experts with biases"));
  other = config;
  other.model.moe.experts = 0;
  EXPECT_THAT(mistake(other, 1), HasSubstr("the model has no experts"));
}

}  // namespace
}  // namespace moebius::train
