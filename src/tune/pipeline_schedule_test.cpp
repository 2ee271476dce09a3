#include "tune/pipeline_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <tuple>

#include "tune/layer_split.h"

namespace moebius::tune {
namespace {

PipelineTimes even_times(const PipelineSchedule& schedule) {
  return PipelineTimes::proportional_to(schedule,
                                        std::vector<double>(static_cast<size_t>(schedule.num_pieces()), 1.0));
}

struct Case {
  PipelineKind kind;
  int stages, chunks;
  int64_t micro_batches;
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const int stages : {1, 2, 3, 4, 8}) {
    for (const int64_t micro : {1, 2, 3, 4, 7, 8, 16}) {
      cases.push_back({PipelineKind::one_f_one_b, stages, 1, micro});
      cases.push_back({PipelineKind::zero_bubble, stages, 1, micro});
      for (const int chunks : {2, 3})
        if (stages > 1 && micro % stages == 0)
          cases.push_back({PipelineKind::interleaved, stages, chunks, micro});
    }
  }
  return cases;
}

TEST(PipelineSchedule, passes_in_turns_stand_together) {
  const PipelineSchedule schedule = make_turns(3, 2);
  using enum PipelinePass;
  const std::vector<PipelineTask> expected{{forward, 0, 0},  {forward, 0, 1}, {backward, 0, 0},
                                           {backward, 0, 1}, {forward, 0, 2}, {backward, 0, 2}};
  ASSERT_EQ(schedule.tasks.size(), 1u);
  EXPECT_EQ(schedule.tasks[0], expected);
  EXPECT_EQ(schedule.together, 2);
  EXPECT_EQ(schedule.most_held(0), 2);
  EXPECT_TRUE(schedule.transfers.empty());
  EXPECT_EQ(timeline_of(schedule, even_times(schedule)).length, 9);
}

TEST(PipelineSchedule, has_every_pass_once_and_in_an_order_that_can_be_carried_out) {
  for (const Case& each : all_cases()) {
    SCOPED_TRACE(testing::Message() << name_of(each.kind) << ", " << each.stages << " x " << each.chunks
                                    << ", " << each.micro_batches);
    const PipelineSchedule schedule = make_schedule(each.kind, each.stages, each.chunks, each.micro_batches);
    const size_t passes = each.kind == PipelineKind::zero_bubble ? 3 : 2;
    for (const auto& tasks : schedule.tasks) {
      std::set<std::tuple<PipelinePass, int, int64_t>> seen;
      for (const PipelineTask& task : tasks) {
        const bool comes_after = task.pass == PipelinePass::forward ||
                                 seen.count({PipelinePass::forward, task.chunk, task.micro_batch}) == 1;
        EXPECT_TRUE(comes_after);
        if (task.pass == PipelinePass::weight) {
          EXPECT_EQ(seen.count({PipelinePass::backward, task.chunk, task.micro_batch}), 1u);
        }
        EXPECT_TRUE(seen.insert({task.pass, task.chunk, task.micro_batch}).second);
      }
      EXPECT_EQ(seen.size(), passes * static_cast<size_t>(each.chunks * each.micro_batches));
    }
    timeline_of(schedule, even_times(schedule));  // CHECKs that nothing waits for itself
    // All but the ends of the model have something to send.
    const size_t expected = each.stages == 1 ? 0 : 2 * static_cast<size_t>(schedule.num_pieces() - 1);
    EXPECT_EQ(schedule.transfers.size(), expected * static_cast<size_t>(each.micro_batches));
  }
}

TEST(PipelineSchedule, idles_and_holds_as_the_papers_say) {
  for (const int stages : {2, 4, 8}) {
    const int64_t micro = 2 * stages;
    const double waiting = stages - 1;
    const auto length = [&](PipelineKind kind, int chunks) {
      const PipelineSchedule schedule = make_schedule(kind, stages, chunks, micro);
      return timeline_of(schedule, even_times(schedule)).length;
    };
    // A forward pass of a stage takes 1, a backward pass 2.
    const double busy = 3 * static_cast<double>(micro);
    EXPECT_DOUBLE_EQ(length(PipelineKind::one_f_one_b, 1), busy + 3 * waiting);
    EXPECT_DOUBLE_EQ(length(PipelineKind::zero_bubble, 1), busy + waiting);
    // Pieces of half a stage.
    EXPECT_DOUBLE_EQ(length(PipelineKind::interleaved, 2) / 2, busy + 3 * waiting / 2);
    for (int stage = 0; stage < stages; ++stage) {
      EXPECT_EQ(make_schedule(PipelineKind::one_f_one_b, stages, 1, micro).most_held(stage), stages - stage);
      EXPECT_EQ(make_schedule(PipelineKind::zero_bubble, stages, 1, micro).most_held(stage), stages);
    }
  }
}

TEST(PipelineSchedule, waits_for_transfers_and_slow_pieces) {
  const PipelineSchedule schedule = make_schedule(PipelineKind::one_f_one_b, 2, 1, 1);
  PipelineTimes times = PipelineTimes::proportional_to(schedule, {1, 3});
  times.transfer = 0.5;
  const Timeline timeline = timeline_of(schedule, times);
  EXPECT_DOUBLE_EQ(timeline.begin[1][0], 1.5);
  EXPECT_DOUBLE_EQ(timeline.begin[0][1], 1.5 + 9 + 0.5);
  EXPECT_DOUBLE_EQ(timeline.length, 13);
  EXPECT_DOUBLE_EQ(timeline.bubble, 1 - 12.0 / 26);
}

config::ModelConfig model_of(int64_t layers) {
  config::ModelConfig model;
  model.layers = layers;
  model.dim = 64;
  model.heads = model.kv_heads = 4;
  model.ffn_dim = 256;
  model.vocab = 64;
  return model;
}

TEST(LayerSplit, is_even_where_layers_are_alike) {
  EXPECT_EQ(split_layers(model_of(8), 32, 4), (std::vector<int64_t>{2, 2, 2, 2}));
  EXPECT_EQ(split_layers(model_of(4), 32, 4), (std::vector<int64_t>{1, 1, 1, 1}));
  EXPECT_EQ(split_layers(model_of(5), 32, 1), (std::vector<int64_t>{5}));
}

TEST(LayerSplit, gives_less_to_the_stage_with_a_large_output_layer) {
  config::ModelConfig model = model_of(8);
  // As much as three layers.
  model.vocab = 3 * active_weights_of_layer(model, 0) / model.dim;
  const std::vector<int64_t> counts = split_layers(model, 32, 2);
  EXPECT_LT(counts[1], counts[0]);
  EXPECT_EQ(counts[0] + counts[1], 8);
  const std::vector<double> flops = forward_flops(model, 32, counts);
  EXPECT_LT(std::abs(flops[0] - flops[1]),
            forward_flops(model, 32, {4, 4})[1] - forward_flops(model, 32, {4, 4})[0]);
}

}  // namespace
}  // namespace moebius::tune
