#include "tune/step_cost.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"

namespace moebius::tune {
namespace {

config::RunConfig mixtral_8x22b() {
  config::RunConfig config;
  config.model.layers = 56;
  config.model.dim = 6144;
  config.model.heads = 48;
  config.model.kv_heads = 8;
  config.model.vocab = 32000;
  config.model.moe.experts = 8;
  config.model.moe.top_k = 2;
  config.model.moe.expert_dim = 16384;
  config.train.sequence = 4096;
  config.train.batch = 256;
  return config;
}

// Its experts cut into eight each, of which sixteen times as many tokens are sent to eight.
config::RunConfig fine_grained() {
  config::RunConfig config = mixtral_8x22b();
  config.model.moe.experts = 64;
  config.model.moe.top_k = 8;
  config.model.moe.expert_dim = 2048;
  return config;
}

// Liu et al. 2025, "MoE Parallel Folding" (arXiv 2504.14960), table 3: MFU on 128 H100.
struct Published {
  CostLayout layout;
  double mfu;
};
const std::vector<Published> kMixtral = {{{.tp = 8, .expert_tp = 8, .zero_stage = 3}, 0.043},
                                         {{.tp = 2, .ep = 8, .expert_tp = 2, .zero_stage = 3}, 0.234},
                                         {{.tp = 4, .ep = 8, .expert_tp = 4}, 0.366},
                                         {{.tp = 2, .pp = 8, .ep = 4, .expert_tp = 2}, 0.463},
                                         {{.tp = 2, .pp = 8, .ep = 8, .expert_tp = 1}, 0.493}};
const std::vector<Published> kFine = {{{.tp = 8, .expert_tp = 8, .zero_stage = 3}, 0.022},
                                      {{.tp = 4, .ep = 8, .expert_tp = 4, .zero_stage = 3}, 0.090},
                                      {{.tp = 2, .pp = 8, .ep = 8, .expert_tp = 2}, 0.171},
                                      {{.tp = 4, .pp = 8, .ep = 8, .expert_tp = 1}, 0.288}};

TEST(StepCostTest, published_layouts_come_out_in_their_order) {
  const Cluster cluster = parse_cluster("h100x128");
  for (const auto& [config, rows] :
       {std::pair{mixtral_8x22b(), kMixtral}, std::pair{fine_grained(), kFine}}) {
    double before = 0;
    for (const Published& row : rows) {
      const StepCost cost = predict_step(config, cluster, row.layout);
      EXPECT_GT(cost.mfu, before) << row.layout.text();
      EXPECT_NEAR(cost.mfu / row.mfu, 1, 0.25) << row.layout.text();
      before = cost.mfu;
      CostLayout hiding = row.layout;
      hiding.hides = true;
      EXPECT_LT(predict_step(config, cluster, hiding).seconds, cost.seconds) << row.layout.text();
    }
  }
}

TEST(StepCostTest, parts_add_up_and_fall_with_more_gpus) {
  const config::RunConfig config = mixtral_8x22b();
  const CostLayout layout{.tp = 2, .pp = 8, .ep = 8, .expert_tp = 1};
  const StepCost cost = predict_step(config, parse_cluster("h100x128"), layout);
  EXPECT_NEAR(cost.dense + cost.attention + cost.experts + cost.passes + cost.tensor + cost.dispatch +
                  cost.expert_tensor + cost.weights + cost.gradients + cost.stages + cost.bubble +
                  cost.optimizer,
              cost.seconds, 1e-9);
  const StepCost more = predict_step(config, parse_cluster("h100x256"), layout);
  EXPECT_LT(more.seconds, cost.seconds);
  EXPECT_LT(more.mfu, cost.mfu);  // the pipeline has fewer micro-batches to fill it
}

TEST(StepCostTest, one_gpu_exchanges_nothing) {
  config::RunConfig config = mixtral_8x22b();
  config.train.batch = 4;
  const StepCost cost = predict_step(config, parse_cluster("h200x1"), {});
  EXPECT_EQ(cost.tensor + cost.dispatch + cost.expert_tensor + cost.weights + cost.gradients + cost.bubble,
            0);
  EXPECT_GT(cost.mfu, 0.4);
  EXPECT_LT(cost.mfu, 0.7);
}

TEST(StepCostTest, the_chosen_layouts_fit_and_are_in_order) {
  const Cluster cluster = parse_cluster("h100x128");
  const std::vector<Choice> best = best_layouts(mixtral_8x22b(), cluster, 5, 7, false);
  ASSERT_EQ(best.size(), 5u);
  for (size_t i = 0; i < best.size(); ++i) {
    EXPECT_LE(best[i].cost.bytes, cluster.gpu.memory_bytes);
    if (i > 0) {
      EXPECT_GE(best[i].cost.seconds, best[i - 1].cost.seconds);
    }
  }
  EXPECT_GE(best[0].cost.mfu, 0.45);
}

TEST(StepCostTest, misfits_are_named) {
  const config::RunConfig config = mixtral_8x22b();
  const Cluster cluster = parse_cluster("h100x128");
  EXPECT_NE(misfit(config, cluster, {.tp = 3}).find("tp x pp = 3"), std::string::npos);
  EXPECT_NE(misfit(config, cluster, {.tp = 16}).find("48 heads"), std::string::npos);
  EXPECT_NE(misfit(config, cluster, {.ep = 16}).find("8 experts"), std::string::npos);
  EXPECT_NE(misfit(config, cluster, {.pp = 64}).find("56 layers"), std::string::npos);
  EXPECT_NE(misfit(config, cluster, {.micro_batch = 3}).find("256 sequences"), std::string::npos);
  EXPECT_THROW(parse_cluster("b200x8"), UserError);
  EXPECT_THROW(parse_cluster("h100"), UserError);
  config::RunConfig dense = config;
  dense.model.moe.experts = 0;
  EXPECT_THROW(predict_step(dense, cluster, {}), UserError);
}

}  // namespace
}  // namespace moebius::tune
