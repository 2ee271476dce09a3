#include "parallel/layout.h"

#include <gtest/gtest.h>

#include <set>

#include "base/error.h"

namespace moebius::parallel {
namespace {

std::vector<Layout> many_layouts() {
  std::vector<Layout> layouts;
  for (const int pp : {1, 3})
    for (const int dp : {1, 2})
      for (const int fsdp : {1, 4})
        for (const int cp : {1, 2})
          for (const int tp : {1, 2, 4})
            for (const int ep : {1, 2, 4, 8})
              for (const int expert_tp : {1, tp}) {
                if (dp * fsdp * cp * tp % (ep * expert_tp) != 0) continue;
                layouts.emplace_back(Layout::Sizes{pp, dp, fsdp, cp, tp, ep, expert_tp});
                if (tp == 4) layouts.emplace_back(Layout::Sizes{pp, dp, fsdp, cp, tp, ep, expert_tp, 1, 2});
              }
  return layouts;
}

// Groups of an axis divide the world into equal parts, each rank at the place that index() says.
TEST(LayoutTest, groups_of_every_axis_part_the_world) {
  for (const Layout& layout : many_layouts()) {
    SCOPED_TRACE(describe(layout));
    for (const Axis axis : kAxes) {
      std::set<std::vector<int>> groups;
      for (int rank = 0; rank < layout.world(); ++rank) {
        const std::vector<int> group = layout.group(axis, rank);
        ASSERT_EQ(static_cast<int>(group.size()), layout.size(axis)) << name_of(axis);
        ASSERT_EQ(group[static_cast<size_t>(layout.index(axis, rank))], rank) << name_of(axis);
        ASSERT_TRUE(std::is_sorted(group.begin(), group.end()));
        for (const int other : group) ASSERT_EQ(layout.group(axis, other), group) << name_of(axis);
        groups.insert(group);
      }
      ASSERT_EQ(static_cast<int>(groups.size()) * layout.size(axis), layout.world()) << name_of(axis);
    }
  }
}

TEST(LayoutTest, a_rank_is_where_its_indices_are) {
  for (const Layout& layout : many_layouts()) {
    SCOPED_TRACE(describe(layout));
    std::set<std::vector<int>> dense, expert;
    for (int rank = 0; rank < layout.world(); ++rank) {
      const auto at = [&](Axis axis) { return layout.index(axis, rank); };
      dense.insert({at(Axis::pp), at(Axis::dp), at(Axis::fsdp), at(Axis::cp), at(Axis::tp)});
      expert.insert({at(Axis::pp), at(Axis::expert_data), at(Axis::ep), at(Axis::expert_tp)});
      EXPECT_EQ(
          at(Axis::data),
          (at(Axis::dp) * layout.size(Axis::fsdp) + at(Axis::fsdp)) * layout.size(Axis::cp) + at(Axis::cp));
      EXPECT_EQ(layout.batch_part(rank), at(Axis::dp) * layout.size(Axis::fsdp) + at(Axis::fsdp));
    }
    EXPECT_EQ(static_cast<int>(dense.size()), layout.world());
    EXPECT_EQ(static_cast<int>(expert.size()), layout.world());
  }
}

TEST(LayoutTest, experts_fold_the_ranks_of_a_stage_anew) {
  // 8 ranks: dp 4 x tp 2. With experts split over tp the expert groups lie across data ranks.
  const Layout split(Layout::Sizes{.dp = 4, .tp = 2, .ep = 2, .expert_tp = 2});
  EXPECT_EQ(split.group(Axis::tp, 0), (std::vector<int>{0, 1}));
  EXPECT_EQ(split.group(Axis::data, 1), (std::vector<int>{1, 3, 5, 7}));
  EXPECT_EQ(split.group(Axis::ep, 1), (std::vector<int>{1, 3}));
  EXPECT_EQ(split.group(Axis::expert_tp, 3), (std::vector<int>{2, 3}));
  EXPECT_EQ(split.group(Axis::expert_data, 1), (std::vector<int>{1, 5}));
  // Whole experts: over tensor ranks first.
  const Layout whole(Layout::Sizes{.dp = 4, .tp = 2, .ep = 4});
  EXPECT_EQ(whole.group(Axis::ep, 1), (std::vector<int>{0, 1, 2, 3}));
  EXPECT_EQ(whole.group(Axis::expert_data, 1), (std::vector<int>{1, 5}));
  // Machines of two ranks of four: neighbours, and those with the same place.
  const Layout nodes(Layout::Sizes{.dp = 8, .ep = 4, .ep_node = 2});
  EXPECT_EQ(nodes.group(Axis::ep_node, 3), (std::vector<int>{2, 3}));
  EXPECT_EQ(nodes.group(Axis::ep_rail, 3), (std::vector<int>{1, 3}));
  EXPECT_EQ(whole.size(Axis::ep_rail), 1);
  // A grid of tensor ranks, row by row; experts are dealt out as its columns and rows lie.
  const Layout grid(Layout::Sizes{.dp = 2, .tp = 4, .ep = 2, .expert_tp = 2, .tp_side = 2});
  EXPECT_EQ(grid.group(Axis::tp_row, 6), (std::vector<int>{6, 7}));
  EXPECT_EQ(grid.group(Axis::tp_column, 5), (std::vector<int>{5, 7}));
  EXPECT_EQ(grid.group(Axis::expert_tp, 6), grid.group(Axis::tp_row, 6));
  EXPECT_EQ(grid.group(Axis::ep, 5), grid.group(Axis::tp_column, 5));
  EXPECT_EQ(grid.group(Axis::expert_data, 1), grid.group(Axis::data, 1));
  EXPECT_EQ(whole.size(Axis::tp_row) * whole.size(Axis::tp_column), 1);
  // Stages are slowest.
  const Layout stages(Layout::Sizes{.pp = 2, .dp = 2, .tp = 2});
  EXPECT_EQ(stages.group(Axis::pp, 1), (std::vector<int>{1, 5}));
  EXPECT_EQ(stages.group(Axis::data, 7), (std::vector<int>{5, 7}));
}

config::RunConfig small_config() {
  config::RunConfig config;
  config.model.heads = 4;
  config.model.kv_heads = 4;
  config.model.layers = 2;
  config.model.moe.experts = 8;
  config.train.batch = 24;
  return config;
}

std::string refusal(const config::RunConfig& config, int world) {
  try {
    make_layout(config, world);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(LayoutTest, what_is_left_open_is_derived) {
  config::RunConfig config = small_config();
  EXPECT_EQ(make_layout(config, 1).world(), 1);
  const Layout copies = make_layout(config, 4);
  EXPECT_EQ(copies.size(Axis::dp), 4);
  EXPECT_EQ(copies.size(Axis::fsdp), 1);
  EXPECT_EQ(describe(copies), "4 processes: dp 4");
  config.parallel.dp = 2;
  config.parallel.fsdp = 2;
  EXPECT_EQ(describe(make_layout(config, 4)), "4 processes: dp 2 x fsdp 2");
  EXPECT_EQ(describe(Layout({.dp = 2, .tp = 2, .ep = 2, .expert_tp = 2})),
            "4 processes: dp 2 x tp 2 (experts of a stage: ep 2 x expert_tp 2)");
  config = small_config();
  config.parallel.tp = 4;
  config.parallel.tp_mode = "2d";
  config.model.ffn_dim = 32;
  EXPECT_EQ(describe(make_layout(config, 8)),
            "8 processes: dp 2 x tp 4 (2 x 2) (experts of a stage: expert_data 2 x ep 2 x expert_tp 2)");
  config.model.moe.experts = 0;
  EXPECT_EQ(describe(make_layout(config, 4)), "4 processes: tp 4 (2 x 2)");
}

TEST(LayoutTest, what_does_not_fit_is_refused_with_what_would) {
  const auto refused = [](int world, const auto& change) {
    config::RunConfig config = small_config();
    change(config);
    return refusal(config, world);
  };
  using C = config::RunConfig;
  EXPECT_EQ(refused(4, [](C& c) { c.parallel.tp = 3; }),
            "parallel.tp is 3, which does not divide the 4 heads (model.heads) and 4 key and value heads "
            "(model.kv_heads); use 1, 2 or 4");
  EXPECT_EQ(
      refused(6, [](C& c) { c.parallel.tp = 4; }),
      "6 processes cannot be laid out with parallel.tp = 4, parallel.cp = 1, parallel.pp = 1: these need a "
      "multiple of 4; start 4 or 8 processes (--nproc), or set tp x cp x pp to 1, 2, 3 or 6");
  EXPECT_EQ(
      refused(1, [](C& c) { c.parallel.tp = 2; }),
      "one process cannot be laid out with parallel.tp = 2, parallel.cp = 1, parallel.pp = 1: these need a "
      "multiple of 2; start 2 processes (--nproc), or set tp x cp x pp to 1");
  EXPECT_EQ(refused(4, [](C& c) { c.parallel.dp = 3; }),
            "parallel.dp = 3 and parallel.fsdp is open, which does not make the 4 ranks that tp x cp x pp = "
            "1 leaves "
            "of 4 processes; set dp x fsdp = 4, leave both at 0, or start 3 processes");
  EXPECT_EQ(refused(6, [](C& c) { c.parallel.ep = 3; }),
            "parallel.ep is 3, which does not divide the 8 experts (model.moe.experts); use 1, 2, 4 or 8");
  EXPECT_EQ(
      refused(8,
              [](C& c) {
                c.parallel.ep = 4;
                c.parallel.ep_node_size = 3;
              }),
      "parallel.ep_node_size is 3, which does not divide the 4 ranks of parallel.ep; use 1, 2 or 4, or 0 "
      "for one level");
  EXPECT_NE(refused(6, [](C& c) { c.parallel.ep = 4; }).find("a pipeline stage has 6 ranks"),
            std::string::npos);
  EXPECT_EQ(refused(3, [](C& c) { c.parallel.pp = 3; }),
            "parallel.pp is 3, but there are only 2 layers (model.layers), and each stage needs one; use at "
            "most 2");
  EXPECT_EQ(
      refused(5, [](C&) {}),
      "train.batch is 24, which 5 data ranks (dp x fsdp) cannot share evenly; use 20 or 25, or as many data "
      "ranks as divide it: 1, 2, 3, 4, 6, 8, 12 or 24");
  EXPECT_EQ(
      refused(4, [](C& c) { c.train.micro_batch = 4; }),
      "train.micro_batch is 4, which does not divide the 6 sequences of a data rank (train.batch 24 over 4 "
      "ranks); use 1, 2, 3 or 6, or 0 for all at once");
  EXPECT_EQ(refused(8,
                    [](C& c) {
                      c.parallel.tp = 2;
                      c.parallel.tp_mode = "2d";
                    }),
            "parallel.tp is 2, but parallel.tp_mode = '2d' needs a square grid of ranks; use 1 or 4");
}

TEST(LayoutTest, what_does_not_go_with_a_grid_is_refused_by_name) {
  const auto refused = [](const auto& change) {
    config::RunConfig config = small_config();
    config.parallel.tp = 4;
    config.parallel.tp_mode = "2d";
    change(config);
    return refusal(config, 8);
  };
  using C = config::RunConfig;
  EXPECT_EQ(refused([](C& c) { c.parallel.pp = 2; }),
            "parallel.pp is 2, but parallel.tp_mode is '2d', whose blocks no stage hands on; set it to 1, or "
            "use tp_mode = '1d'");
  EXPECT_EQ(refused([](C& c) { c.parallel.ep = 2; }),
            "parallel.ep is 2, but parallel.tp_mode is '2d', which deals experts out to the rows of its grid "
            "by itself; set it to 1, or use tp_mode = '1d'");
  EXPECT_EQ(refused([](C& c) { c.parallel.expert_tp = 1; }),
            "parallel.expert_tp is 1, but parallel.tp_mode is '2d', which splits experts over the columns of "
            "its grid; set it to 0, or use tp_mode = '1d'");
  EXPECT_EQ(
      refused([](C& c) { c.quant.scheme = "int8"; }),
      "quant.scheme is 'int8', but parallel.tp_mode is '2d', whose products are of plain floats; set it "
      "to 'none', or use tp_mode = '1d'");
  EXPECT_NE(refused([](C& c) { c.model.dim = 33; }).find("2 does not divide model.dim = 33"),
            std::string::npos);
}

// To be shortened as they land.
TEST(LayoutTest, combinations_that_are_not_there_yet_are_refused_by_name) {
  config::RunConfig config = small_config();
  config.parallel.tp = 4;
  config.parallel.tp_mode = "2d";
  config.parallel.cp = 2;
  config.train.sequence = 64;
  EXPECT_EQ(
      refusal(config, 8),
      "parallel.tp_mode is '2d', but a grid of tensor ranks that share sequences (parallel.cp above 1) is "
      "not there yet; set it to '1d'");
}

TEST(LayoutTest, context_ranks_share_sequences_evenly_or_are_refused) {
  const auto refused = [](const auto& change) {
    config::RunConfig config = small_config();
    config.parallel.cp = 4;
    config.train.sequence = 64;
    change(config);
    return refusal(config, 8);
  };
  using C = config::RunConfig;
  EXPECT_EQ(refused([](C&) {}), "accepted");
  for (const char* batching : {"pad", "pack"})
    EXPECT_EQ(refused([&](C& c) { c.data.batching = batching; }), "accepted");
  EXPECT_EQ(refused([](C& c) { c.train.sequence = 66; }),
            "train.sequence is 66, which the 4 ranks of parallel.cp cannot share evenly; use 64 or 68, or a "
            "parallel.cp that divides it: 1, 2, 3, 6, 11, 22, 33 or 66");
  for (const char* batching : {"balanced", "three-buckets", "buckets:4"})
    EXPECT_EQ(refused([&](C& c) { c.data.batching = batching; }),
              concat("data.batching is '", batching,
                     "', whose micro-batches have another length each, but the 4 ranks of parallel.cp share "
                     "equal parts of them; use 'window', 'pad' or 'pack', or parallel.cp = 1"));
}

// What a stage of ZeRO splits lies over fsdp and cp together, neighbours in the layout.
TEST(LayoutTest, shards_lie_over_context_ranks_too) {
  const Layout both({.dp = 2, .fsdp = 2, .cp = 2, .tp = 2, .expert_tp = 2});
  EXPECT_EQ(both.size(Axis::shard), 4);
  EXPECT_EQ(both.group(Axis::shard, 9), (std::vector<int>{9, 11, 13, 15}));
  EXPECT_EQ(both.batch_parts(), 4);
  EXPECT_EQ(both.batch_part(9), both.batch_part(11));
  EXPECT_EQ(describe(both), "16 processes: dp 2 x fsdp 2 x cp 2 x tp 2");
  EXPECT_EQ(Layout({.dp = 2, .fsdp = 2, .tp = 2}).size(Axis::shard), 1);
}

TEST(LayoutTest, micro_batches_in_turns_need_trips_a_whole_model_and_a_partner) {
  const auto refused = [](const auto& change) {
    config::RunConfig config = small_config();
    config.parallel.ep = 2;
    config.parallel.ep_pairs = true;
    config.train.micro_batch = 3;
    change(config);
    return refusal(config, 2);
  };
  using C = config::RunConfig;
  const std::string what =
      "parallel.ep_pairs lets two micro-batches take turns while tokens travel to their experts, but ";
  EXPECT_EQ(refused([](C&) {}), "accepted");
  EXPECT_EQ(refused([](C& c) { c.parallel.ep = 1; }),
            what + "parallel.ep is 1, so that none do; set parallel.ep_pairs = false");
  EXPECT_EQ(refused([](C& c) { c.parallel.zero_stage = 3; }),
            what +
                "with parallel.zero_stage = 3 the weights of a layer are gone when the first has passed it: "
                "use zero_stage 0 to 2, or set parallel.ep_pairs = false");
  EXPECT_EQ(refused([](C& c) { c.train.micro_batch = 12; }),
            what +
                "a step has one micro-batch per rank (train.batch 24 over 2 data ranks, train.micro_batch "
                "12): use train.micro_batch = 6, or set parallel.ep_pairs = false");
  config::RunConfig piped = small_config();
  piped.parallel.ep = piped.parallel.pp = 2;
  piped.parallel.ep_pairs = true;
  EXPECT_EQ(refusal(piped, 4), what +
                                   "with parallel.pp = 2 stages of a pipeline take them one by one; set "
                                   "parallel.ep_pairs = false");
}

TEST(LayoutTest, pipelines_that_do_not_fit_are_refused) {
  const auto refused = [](const auto& change) {
    config::RunConfig config = small_config();
    config.parallel.pp = 2;
    config.model.layers = 6;
    change(config);
    return refusal(config, 2);
  };
  using C = config::RunConfig;
  EXPECT_EQ(refused([](C&) {}), "accepted");
  EXPECT_EQ(refused([](C& c) { c.parallel.pp_chunks = 2; }),
            "parallel.pp_schedule is '1f1b' and parallel.pp_chunks 2; several groups of layers per stage go "
            "with 'interleaved', and it needs at least 2");
  const auto interleaved = [](C& c) {
    c.parallel.pp_schedule = "interleaved";
    c.parallel.pp_chunks = 2;
    c.train.micro_batch = 4;
  };
  EXPECT_EQ(refused(interleaved), "accepted");
  EXPECT_EQ(
      refused([&](C& c) {
        interleaved(c);
        c.train.micro_batch = 8;
      }),
      "parallel.pp_schedule = 'interleaved' passes micro-batches in groups of parallel.pp = 2, but a step "
      "has 3 (train.batch 24 over 1 data ranks, train.micro_batch 8); make their number a multiple of 2, "
      "or use pp_schedule = '1f1b'");
  EXPECT_EQ(
      refused([&](C& c) {
        interleaved(c);
        c.parallel.pp_chunks = 4;
      }),
      "parallel.pp x parallel.pp_chunks is 8, but there are only 6 layers (model.layers), and each group "
      "needs one; use at most 3 groups per stage");
  EXPECT_EQ(refused([](C& c) {
              c.parallel.pp_layers = {4, 1};
            }),
            "parallel.pp_layers has 2 groups of 5 layers together, but parallel.pp x parallel.pp_chunks asks "
            "for 2 groups and model.layers for 6 layers");
  EXPECT_NE(refused([](C& c) {
              c.model.moe.balance.aux_loss = 0.01;
              c.model.moe.balance.aux_scope = "model";
            }).find("balances load over all layers together, which no stage has"),
            std::string::npos);
  EXPECT_NE(refused([](C& c) {
              c.parallel.pp_schedule = "zero_bubble";
              c.parallel.zero_stage = 2;
            }).find("use zero_stage = 1, or pp_schedule = '1f1b'"),
            std::string::npos);
  EXPECT_EQ(
      refused([](C& c) {
        c.parallel.pp = 1;
        c.parallel.pp_layers = {6};
      }),
      "parallel.pp_layers deals layers out to the stages of a pipeline, but parallel.pp is 1; raise it, or "
      "leave the field out");
}

}  // namespace
}  // namespace moebius::parallel
