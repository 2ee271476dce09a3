#include "data/planner/planner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <string>

#include "base/concat.h"
#include "base/philox.h"
#include "data/planner/plan_report.h"

namespace moebius::data {
namespace {

using ::testing::ElementsAre;

using Lengths = std::vector<int64_t>;

std::unique_ptr<Planner> planner_of(const std::string& policy, const Lengths& lengths,
                                    const PlanShape& shape) {
  return make_planner(config::parse_batching(policy, "policy"),
                      std::make_unique<ListStream>(lengths, shape.context, true, "lengths"), shape,
                      cost_of_width(4096));
}

// "0:5 2:3 ~1 | 1:4+2": documents with their tokens (and where a part begins), padding, micro-batches.
std::string text_of(const StepPlan& plan) {
  std::string text;
  for (const MicroBatchPlan& each : plan.micro_batches) {
    if (&each != &plan.micro_batches.front()) text += " | ";
    std::string list;
    for (const Piece& piece : each.pieces) {
      list += concat(list.empty() ? "" : " ", piece.document, ":", piece.length);
      if (piece.begin > 0) list += concat("+", piece.begin);
    }
    if (each.row_length > 0) list += concat(" x", each.row_length);
    if (each.padding > 0) list += concat(" ~", each.padding);
    text += list.empty() ? "-" : list;
  }
  return text;
}

std::vector<std::string> plan_of(const std::string& policy, const Lengths& lengths, const PlanShape& shape) {
  const auto planner = planner_of(policy, lengths, shape);
  std::vector<std::string> steps;
  StepPlan plan;
  while (planner->next(plan)) {
    EXPECT_EQ(plan.step, static_cast<int64_t>(steps.size()));
    steps.push_back(text_of(plan));
  }
  return steps;
}

// Mostly short with a long tail, some empty, some beyond the context.
Lengths random_lengths(int64_t count, uint64_t seed) {
  const Philox random(seed, "test.lengths");
  Lengths lengths;
  for (int64_t i = 0; i < count; ++i) {
    lengths.push_back(static_cast<int64_t>(60 * std::exp(1.4 * random.normal(i))));
  }
  return lengths;
}

const std::vector<std::string> kPolicies{"pad",       "three-buckets", "edges:16,64,200", "buckets:1",
                                         "buckets:6", "pack",          "balanced"};
constexpr PlanShape kSmall{
    .context = 512, .rows = 2, .micro_batches = 4, .ranks = 2, .window = 50, .max_delay = 5};

TEST(Planner, pad_gives_each_document_a_row_of_the_context) {
  EXPECT_THAT(plan_of("pad", {5, 0, 8, 11, 1}, {.context = 8, .rows = 2, .micro_batches = 2, .window = 4}),
              ElementsAre("0:5 2:8 x8 ~3 | 3:8 3:3+8 x8 ~5", "4:1 x8 ~7 | -"));
}

TEST(Planner, pack_seeds_with_the_oldest_and_fits_best) {
  // 0:6 leaves 4: exactly 3:4. 1:7 leaves 3: no single piece of 3, but 5:2 with 6:1. 2:5 leaves 5: 4:5.
  EXPECT_THAT(plan_of("pack", {6, 7, 5, 4, 5, 2, 1}, {.context = 10, .micro_batches = 2, .window = 7}),
              ElementsAre("0:6 3:4 | 1:7 5:2 6:1", "2:5 4:5 | -"));
}

TEST(Planner, pack_prefers_the_pair_that_leaves_nothing) {
  // 0:10 leaves 22: 12 + 10 and 13 + 9 leave nothing, and 13 is the longest piece.
  EXPECT_THAT(plan_of("pack", {10, 7, 12, 9, 6, 10, 13}, {.context = 32, .micro_batches = 1, .window = 7}),
              ElementsAre("0:10 6:13 3:9", "1:7 2:12 5:10 ~3", "4:6"));
}

TEST(Planner, pack_cuts_only_what_is_longer_than_the_context) {
  EXPECT_THAT(plan_of("pack", {3, 25, 7}, {.context = 10, .micro_batches = 2, .window = 10}),
              ElementsAre("0:3 2:7 | 1:10", "1:10+10 | 1:5+20"));
}

TEST(Planner, pack_sees_no_further_than_its_window) {
  EXPECT_THAT(plan_of("pack", {6, 7, 5, 4}, {.context = 10, .micro_batches = 1, .window = 2}),
              ElementsAre("0:6 ~4", "1:7 ~3", "2:5 3:4"));
}

TEST(Planner, three_buckets_serve_short_ones_first_and_every_fourth_time_long_ones) {
  // Room 512: four rows of 127, two of 256, one of 512. The long bucket would be last but for its slice.
  Lengths lengths{300};
  for (int i = 0; i < 20; ++i) lengths.push_back(100);
  lengths.insert(lengths.end(), {200, 250});
  EXPECT_THAT(plan_of("three-buckets", lengths, {.context = 512, .micro_batches = 2, .window = 30}),
              ElementsAre("1:100 2:100 3:100 4:100 5:100 x100 | 6:100 7:100 8:100 9:100 10:100 x100",
                          "11:100 12:100 13:100 14:100 15:100 x100 | 0:300 x300",
                          "16:100 17:100 18:100 19:100 20:100 x100 | 21:200 22:250 x250 ~50"));
}

TEST(Planner, three_buckets_give_a_long_document_one_slice_of_a_micro_batch) {
  EXPECT_THAT(plan_of("three-buckets", {1000, 400, 300},
                      {.context = 400, .rows = 3, .micro_batches = 3, .window = 9}),
              ElementsAre("0:400 1:400 2:300 x400 ~100 | 0:400+400 x400 | 0:200+800 x200"));
}

TEST(Planner, edges_serve_the_class_of_the_oldest_document_that_fills_a_micro_batch) {
  // Room 20: five rows of 4, or two of 10. Document 0 is the oldest, but alone in its class at first.
  EXPECT_THAT(plan_of("edges:4", {9, 4, 3, 4, 2, 4, 10, 1}, {.context = 20, .micro_batches = 2, .window = 6}),
              ElementsAre("1:4 2:3 3:4 4:2 5:4 x4 ~3 | 0:9 6:10 x10 ~1", "7:1 x1 | -"));
}

TEST(Planner, buckets_put_their_edges_where_tokens_are_equal) {
  // 12 tokens in ones, 12 in threes, 12 in sixes: edges 1 and 3.
  const Lengths lengths{6, 3, 1, 1, 3, 1, 1, 1, 1, 6, 3, 1, 1, 1, 1, 3, 1, 1};
  EXPECT_THAT(
      plan_of("buckets:3", lengths, {.context = 6, .rows = 2, .micro_batches = 3, .window = 18}),
      ElementsAre("0:6 9:6 x6 | 1:3 4:3 10:3 15:3 x3 | 2:1 3:1 5:1 6:1 7:1 8:1 11:1 12:1 13:1 14:1 16:1 "
                  "17:1 x1"));
}

TEST(Planner, balanced_fills_to_equal_cost) {
  // At a context of 2 h an attention token costs a sixth of a linear one: a whole context costs as much as
  // 7/6 of it in short pieces.
  const PlanShape shape{.context = 8192, .micro_batches = 2, .window = 40};
  Lengths lengths{8192};
  for (int i = 0; i < 60; ++i) lengths.push_back(512);
  const auto planner = planner_of("balanced", lengths, shape);
  StepPlan plan;
  ASSERT_TRUE(planner->next(plan));
  EXPECT_EQ(plan.micro_batches[0].pieces.size(), 16u);
  EXPECT_EQ(plan.micro_batches[1].pieces.size(), 16u);
}

TEST(Planner, balanced_keeps_long_pieces_until_there_is_one_for_each_micro_batch) {
  const PlanShape shape{.context = 8192, .micro_batches = 2, .window = 64, .max_delay = 100};
  Lengths lengths;
  for (int i = 0; i < 200; ++i) lengths.push_back(i == 3 || i == 170 ? 8192 : 512);
  const auto planner = planner_of("balanced", lengths, shape);
  StepPlan plan;
  std::map<int64_t, int64_t> step_of;
  while (planner->next(plan)) {
    for (const MicroBatchPlan& each : plan.micro_batches) {
      for (const Piece& piece : each.pieces) step_of[piece.document] = plan.step;
    }
  }
  EXPECT_EQ(step_of.size(), 200u);
  EXPECT_EQ(step_of[3], step_of[170]);
  EXPECT_GE(step_of[3], 3);
}

TEST(Planner, balanced_gives_up_waiting_after_max_delay) {
  const PlanShape shape{.context = 8192, .micro_batches = 2, .window = 64, .max_delay = 2};
  Lengths lengths(400, 512);
  lengths[3] = 8192;
  const auto planner = planner_of("balanced", lengths, shape);
  StepPlan plan;
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(planner->next(plan));
    const auto& pieces = plan.micro_batches[0].pieces;
    EXPECT_EQ(pieces[0].length == 8192, step == 2) << step;
  }
  // The other micro-batch of that step is filled to the same cost: 8192 * 7/6 in pieces of 512.
  EXPECT_EQ(plan.micro_batches[1].tokens, 18 * 512);
}

TEST(Planner, balanced_shares_out_what_is_left_at_the_end) {
  const PlanShape shape{.context = 1000, .micro_batches = 4, .window = 10};
  EXPECT_THAT(plan_of("balanced", {100, 90, 80, 70, 60, 50, 40, 30}, shape),
              ElementsAre("0:100 7:30 | 1:90 6:40 | 2:80 5:50 | 3:70 4:60"));
  // The window is smaller than what is left, too.
  const auto planner =
      planner_of("balanced", Lengths(130, 10), {.context = 400, .micro_batches = 4, .window = 10});
  const PlanReport report = plan_all(*planner, shape);
  EXPECT_EQ(report.steps, 1);
  EXPECT_EQ(report.largest_micro_batch, 330);
}

TEST(Planner, every_policy_plans_every_token_once_within_its_bounds) {
  for (const std::string& policy : kPolicies) {
    for (const int64_t window : {1, 7, 50, 5000}) {
      PlanShape shape = kSmall;
      shape.window = window;
      const Lengths lengths = random_lengths(3000, 1);
      const auto planner = planner_of(policy, lengths, shape);
      std::map<int64_t, std::map<int64_t, int64_t>> parts;  // by document: begin to end
      std::set<int64_t> arrivals;
      StepPlan plan;
      while (planner->next(plan)) {
        ASSERT_EQ(plan.micro_batches.size(), 8u);
        for (const MicroBatchPlan& each : plan.micro_batches) {
          int64_t tokens = 0;
          for (const Piece& piece : each.pieces) {
            ASSERT_GE(piece.length, 1);
            ASSERT_LE(piece.length, shape.context);
            ASSERT_LE(piece.length, each.row_length == 0 ? shape.context : each.row_length);
            ASSERT_TRUE(parts[piece.document].emplace(piece.begin, piece.begin + piece.length).second);
            tokens += piece.length;
          }
          for (const int64_t arrival : each.arrivals) ASSERT_TRUE(arrivals.insert(arrival).second);
          ASSERT_EQ(each.arrivals.size(), each.pieces.size());
          ASSERT_EQ(each.tokens, tokens);
          const auto rows = static_cast<int64_t>(each.pieces.size());
          if (each.row_length > 0) {
            ASSERT_EQ(each.padding, rows * each.row_length - tokens);
          }
          if (policy == "balanced") {
            ASSERT_EQ(each.padding, 0);
          }
          ASSERT_LE(tokens + each.padding, policy == "balanced" ? 1280 : 1024) << policy;
        }
      }
      for (size_t d = 0; d < lengths.size(); ++d) {
        int64_t at = 0;
        for (const auto& [begin, end] : parts[static_cast<int64_t>(d)]) {
          ASSERT_EQ(begin, at) << policy << " document " << d;
          at = end;
        }
        ASSERT_EQ(at, lengths[d]) << policy << " document " << d;
      }
    }
  }
}

TEST(Planner, every_policy_leaves_no_micro_batch_empty_before_the_end) {
  for (const std::string& policy : kPolicies) {
    for (const int64_t window : {1, 50}) {
      PlanShape shape = kSmall;
      shape.window = window;
      const auto planner = planner_of(policy, random_lengths(20000, 2), shape);
      StepPlan plan;
      for (int step = 0; step < 40; ++step) {
        ASSERT_TRUE(planner->next(plan));
        for (const auto& each : plan.micro_batches) ASSERT_FALSE(each.pieces.empty()) << policy << step;
      }
    }
  }
}

TEST(Planner, every_policy_resumes_at_every_step) {
  for (const std::string& policy : kPolicies) {
    const Lengths lengths = random_lengths(1500, 3);
    const auto straight = planner_of(policy, lengths, kSmall);
    StepPlan expected, found;
    std::unique_ptr<Planner> resumed = planner_of(policy, lengths, kSmall);
    while (straight->next(expected)) {
      ASSERT_TRUE(resumed->next(found));
      ASSERT_EQ(text_of(found), text_of(expected)) << policy << " step " << expected.step;
      ASSERT_TRUE(found == expected);
      const std::string state = resumed->state();
      EXPECT_LT(state.size(), 8000u);
      resumed = planner_of(policy, lengths, kSmall);
      resumed->restore(state);
      ASSERT_EQ(resumed->state(), state);
      ASSERT_EQ(resumed->step(), straight->step());
    }
    EXPECT_FALSE(resumed->next(found));
  }
}

TEST(Planner, a_stream_without_a_token_has_no_step) {
  for (const std::string& policy : kPolicies) {
    EXPECT_TRUE(plan_of(policy, {}, kSmall).empty());
    EXPECT_TRUE(plan_of(policy, {0, 0}, kSmall).empty());
    EXPECT_EQ(plan_of(policy, {0, 1, 0}, kSmall).size(), 1u);
  }
}

TEST(Planner, equal_lengths_are_planned_in_order) {
  EXPECT_THAT(plan_of("pack", {4, 4, 4, 4, 4}, {.context = 10, .micro_batches = 2, .window = 3}),
              ElementsAre("0:4 1:4 ~2 | 2:4 3:4 ~2", "4:4 | -"));
}

TEST(PlanReport, measures_efficiency_balance_and_delay) {
  const PlanShape shape{.context = 10, .micro_batches = 2, .window = 7};
  const auto planner = planner_of("pack", {6, 7, 5, 4, 5, 2, 1, 23, 0}, shape);
  // 0:6 3:4 | 1:7 7:3+20, then 2:5 4:5 | 5:2 6:1 ~7, then 7:10 | 7:10+10.
  const PlanReport report = plan_all(*planner, shape);
  EXPECT_EQ(report.documents, 8);
  EXPECT_EQ(report.pieces, 10);
  EXPECT_EQ(report.tokens, 53);
  EXPECT_EQ(report.padding, 7);
  EXPECT_EQ(report.steps, 3);
  EXPECT_EQ(report.micro_batches, 6);
  EXPECT_EQ(report.largest_micro_batch, 10);
  EXPECT_EQ(report.max_delay_steps, 2);  // 7:10 after 7:3+20
  EXPECT_EQ(report.max_over_mean_tokens, 1);
  EXPECT_GT(report.max_over_mean_cost, 1);
  EXPECT_LT(report.max_over_mean_cost, 1.001);
}

TEST(PlanReport, compares_the_policies_as_expected) {
  const PlanShape shape{.context = 1024, .rows = 4, .micro_batches = 4, .window = 500};
  std::map<std::string, PlanReport> reports;
  for (const std::string& policy : kPolicies) {
    const auto planner = planner_of(policy, random_lengths(20000, 4), shape);
    reports[policy] = plan_all(*planner, shape);
  }
  EXPECT_LT(reports["pad"].token_efficiency(), 0.2);
  EXPECT_GT(reports["three-buckets"].token_efficiency(), reports["pad"].token_efficiency());
  EXPECT_GT(reports["buckets:6"].token_efficiency(), reports["three-buckets"].token_efficiency());
  EXPECT_GT(reports["pack"].token_efficiency(), 0.999);
  EXPECT_EQ(reports["balanced"].token_efficiency(), 1);
  EXPECT_LT(reports["balanced"].max_over_mean_cost, 1.002);
  EXPECT_LT(reports["balanced"].max_over_mean_rank_cost, 1.001);
  EXPECT_LT(reports["balanced"].max_over_mean_cost, reports["pack"].max_over_mean_cost);
}

TEST(CostModel, of_a_width_is_the_published_formula) {
  const CostModel cost = cost_of_width(4096);
  const double h = 4096, l = 32768;
  EXPECT_NEAR(cost.of(32768), 24 * h * h * l * (1 + l / (12 * h)), 1e-3 * h * h);
}

TEST(CostModel, of_a_model_counts_each_product) {
  config::ModelConfig model;
  model.layers = 3;
  model.dim = 64;
  model.heads = 4;
  model.kv_heads = 2;
  model.ffn_dim = 100;
  model.vocab = 1000;
  model.moe.experts = 8;
  model.moe.top_k = 2;
  model.moe.shared_experts = 1;
  model.moe.expert_dim = 32;
  model.moe.dense_layers = {0};
  const CostModel cost = cost_of_model(model);
  EXPECT_EQ(cost.linear_flops, 3 * 2 * 64 * (64 + 64 + 32 + 32) + 6 * 64 * 100 + 2 * 64 * 1000);
  EXPECT_EQ(cost.expert_flops, 2 * (3 * 6 * 64 * 32 + 2 * 64 * 8));
  EXPECT_EQ(cost.attention_flops, 3 * 2 * 64);
}

TEST(CostModel, longest_is_the_inverse) {
  const CostModel cost = cost_of_width(128);
  for (const int64_t length : {1, 2, 77, 4096, 1 << 20}) {
    EXPECT_EQ(cost.longest(cost.of(length)), length);
    EXPECT_EQ(cost.longest(cost.of(length) * (1 - 1e-9)), length - 1);
  }
  EXPECT_EQ(cost.longest(0), 0);
}

}  // namespace
}  // namespace moebius::data
