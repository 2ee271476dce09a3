// Experts spread over threads, against the experts of one process.
#include "parallel/expert_dispatcher.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

using ops::cases::OpClass;

enum class Load : uint8_t {
  random,
  first_expert,   // in every token's choice
  no_first_rank,  // its experts get nothing
  one_rank,       // all tokens go to the last rank
};

struct SpreadCase {
  std::string name;
  std::vector<int64_t> tokens;  // of each rank
  int64_t experts = 8, top_k = 2;
  int64_t chunks = 1;
  Load load = Load::random;
  int64_t capacity = -1;
  at::ScalarType dtype = at::kFloat;
  bool biased = false, clamped = false;
  bool recompute = false;

  int num_ranks() const { return static_cast<int>(tokens.size()); }
  int64_t num_local() const { return experts / num_ranks(); }
};

constexpr int64_t kWidth = 24, kHidden = 20;

struct RankInputs {
  at::Tensor x_TD, grad_y_TD;
  ops::Routing routing;
};

struct Problem {
  std::vector<RankInputs> ranks;
  moe::ExpertWeights experts;
};

ops::Routing draw_routing(const SpreadCase& setup, int64_t num_tokens) {
  at::Tensor logits = at::randn({num_tokens, setup.experts});
  const int64_t local = setup.num_local();
  if (setup.load == Load::first_expert) logits.narrow(1, 0, 1).add_(50);
  if (setup.load == Load::no_first_rank) logits.narrow(1, 0, local).sub_(50);
  if (setup.load == Load::one_rank) logits.narrow(1, setup.experts - local, local).add_(50);
  ops::RouteOptions options;
  options.top_k = setup.top_k;
  options.capacity = setup.capacity;
  ops::Routing routing = ops::route(logits, {}, {}, 1, options);
  routing.weights_TK = at::rand({num_tokens, setup.top_k}) + 0.1;
  return routing;
}

Problem make_problem(const SpreadCase& setup) {
  at::manual_seed(11);
  Problem problem;
  const auto draw = [&](at::IntArrayRef sizes, double scale) {
    return (at::randn(sizes) * scale).to(setup.dtype);
  };
  for (const int64_t count : setup.tokens)
    problem.ranks.push_back({draw({count, kWidth}, 1), draw({count, kWidth}, 1), draw_routing(setup, count)});
  moe::ExpertWeights& experts = problem.experts;
  experts.gate_up_E2FD = draw({setup.experts, 2 * kHidden, kWidth}, 1 / std::sqrt(kWidth));
  experts.down_EDF = draw({setup.experts, kWidth, kHidden}, 1 / std::sqrt(kHidden));
  experts.form.clamped = setup.clamped;
  if (setup.biased) {
    experts.form.gate_up_bias_E2F = draw({setup.experts, 2 * kHidden}, 1);
    experts.form.down_bias_ED = draw({setup.experts, kWidth}, 1);
  }
  return problem;
}

// Experts [begin, begin + count) as leaves.
moe::ExpertWeights part_of(const moe::ExpertWeights& all, int64_t begin, int64_t count) {
  const auto part = [&](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.narrow(0, begin, count).clone().requires_grad_(true) : at::Tensor();
  };
  moe::ExpertWeights experts{part(all.gate_up_E2FD), part(all.down_EDF), all.form};
  experts.form.gate_up_bias_E2F = part(all.form.gate_up_bias_E2F);
  experts.form.down_bias_ED = part(all.form.down_bias_ED);
  return experts;
}

constexpr const char* kNames[] = {
    "y", "grad x", "grad weights", "grad gate_up", "grad down", "grad gate_up bias", "grad down bias"};
constexpr size_t kFirstOfExperts = 3;

// In the order of kNames.
std::vector<at::Tensor> run(const moe::TokenDispatcher& dispatcher, const RankInputs& rank,
                            const moe::ExpertWeights& experts, bool recompute) {
  const at::Tensor x_TD = rank.x_TD.clone().requires_grad_(true);
  ops::Routing routing = rank.routing;
  routing.weights_TK = routing.weights_TK.clone().requires_grad_(true);
  int calls = 0;
  const at::Tensor y_TD = dispatcher.apply(x_TD, routing, experts, recompute, [&] { ++calls; });
  EXPECT_EQ(calls, 1);
  std::vector<at::Tensor> leaves{x_TD, routing.weights_TK, experts.gate_up_E2FD, experts.down_EDF};
  for (const at::Tensor& bias : {experts.form.gate_up_bias_E2F, experts.form.down_bias_ED})
    if (bias.defined()) leaves.push_back(bias);
  std::vector<at::Tensor> result = torch::autograd::grad({y_TD}, leaves, {rank.grad_y_TD});
  result.insert(result.begin(), y_TD.detach());
  return result;
}

using Results = std::vector<std::vector<at::Tensor>>;  // by rank

Results run_spread(const SpreadCase& setup, const Problem& problem) {
  Results results(setup.tokens.size());
  ThreadGroup group(setup.num_ranks(), "ep");
  group.run([&](Communicator& comm) {
    const ExpertDispatcher dispatcher(comm, setup.experts, setup.chunks);
    const auto rank = static_cast<size_t>(comm.rank());
    results[rank] =
        run(dispatcher, problem.ranks[rank],
            part_of(problem.experts, comm.rank() * setup.num_local(), setup.num_local()), setup.recompute);
  });
  return results;
}

// What every rank gets with all experts of its own; gradients of experts summed over the ranks.
Results run_together(const SpreadCase& setup, const Problem& problem) {
  Results results;
  for (const RankInputs& rank : problem.ranks)
    results.push_back(
        run(moe::LocalDispatcher(), rank, part_of(problem.experts, 0, setup.experts), setup.recompute));
  for (size_t i = kFirstOfExperts; i < results[0].size(); ++i) {
    at::Tensor sum = at::zeros_like(results[0][i], at::kFloat);
    for (const auto& rank : results) sum += rank[i];
    for (int rank = 0; rank < setup.num_ranks(); ++rank)
      results[static_cast<size_t>(rank)][i] = sum.narrow(0, rank * setup.num_local(), setup.num_local());
  }
  return results;
}

void expect_close_results(const Results& have, const Results& want, at::ScalarType dtype) {
  for (size_t rank = 0; rank < have.size(); ++rank) {
    ASSERT_EQ(have[rank].size(), want[rank].size());
    for (size_t i = 0; i < have[rank].size(); ++i) {
      EXPECT_EQ(have[rank][i].sizes(), want[rank][i].sizes()) << kNames[i] << " of rank " << rank;
      if (have[rank][i].numel() == 0) continue;
      EXPECT_LE(ops::cases::normalised_error(have[rank][i].to(at::kDouble), want[rank][i].to(at::kDouble)),
                ops::cases::tolerance(OpClass::chain, dtype))
          << kNames[i] << " of rank " << rank;
    }
  }
}

const std::vector<SpreadCase>& spread_cases() {
  static const std::vector<SpreadCase> all{
      {.name = "two_ranks", .tokens = {30, 30}},
      {.name = "one_rank", .tokens = {30}},
      {.name = "four_ranks_uneven", .tokens = {17, 1, 40, 23}, .experts = 12, .top_k = 3},
      {.name = "more_choices_than_local_experts", .tokens = {20, 25, 19, 31}, .experts = 8, .top_k = 6},
      {.name = "every_expert", .tokens = {9, 11}, .experts = 4, .top_k = 4},
      {.name = "one_expert_per_rank", .tokens = {9, 11, 8, 7}, .experts = 4, .top_k = 2},
      {.name = "three_chunks", .tokens = {30, 31, 28}, .experts = 9, .top_k = 4, .chunks = 3},
      {.name = "more_chunks_than_tokens", .tokens = {2, 5}, .chunks = 4},
      {.name = "a_rank_without_tokens", .tokens = {20, 0, 13, 0}, .chunks = 2},
      {.name = "no_tokens_at_all", .tokens = {0, 0}, .chunks = 2},
      {.name = "one_busy_expert", .tokens = {25, 25}, .load = Load::first_expert},
      {.name = "a_rank_without_rows", .tokens = {25, 20}, .load = Load::no_first_rank},
      {.name = "all_to_one_rank", .tokens = {25, 20}, .chunks = 2, .load = Load::one_rank},
      {.name = "capacity", .tokens = {25, 40}, .top_k = 3, .chunks = 2, .capacity = 5},
      {.name = "capacity_0", .tokens = {5, 4}, .capacity = 0},
      {.name = "recompute", .tokens = {25, 40}, .top_k = 3, .chunks = 2, .recompute = true},
      {.name = "bf16", .tokens = {30, 24, 20, 28}, .top_k = 3, .chunks = 2, .dtype = at::kBFloat16},
      {.name = "biased", .tokens = {30, 24}, .top_k = 3, .chunks = 2, .biased = true, .clamped = true},
      {.name = "biased_capacity", .tokens = {30, 24}, .top_k = 5, .capacity = 9, .biased = true},
  };
  return all;
}

class SpreadExperts : public testing::TestWithParam<SpreadCase> {};

TEST_P(SpreadExperts, compute_what_those_of_one_process_do) {
  const Problem problem = make_problem(GetParam());
  expect_close_results(run_spread(GetParam(), problem), run_together(GetParam(), problem), GetParam().dtype);
}

INSTANTIATE_TEST_SUITE_P(Cases, SpreadExperts, testing::ValuesIn(spread_cases()),
                         [](const auto& info) { return info.param.name; });

// All tokens after each other, and all experts, in one process.
std::vector<at::Tensor> run_concatenated(const SpreadCase& setup, const Problem& problem) {
  std::vector<at::Tensor> x, grad_y, weights, experts;
  for (const RankInputs& rank : problem.ranks) {
    x.push_back(rank.x_TD);
    grad_y.push_back(rank.grad_y_TD);
    weights.push_back(rank.routing.weights_TK);
    experts.push_back(rank.routing.experts_TK);
  }
  RankInputs all{at::cat(x), at::cat(grad_y), {}};
  all.routing.weights_TK = at::cat(weights);
  all.routing.experts_TK = at::cat(experts);
  const ops::SlotOrder sorted = ops::sort_by_expert(all.routing.experts_TK, setup.experts);
  all.routing.order_R = sorted.order_R;
  all.routing.inverse_R = sorted.inverse_R;
  all.routing.offsets_E1 = sorted.offsets_E1;
  return run(moe::LocalDispatcher(), all, part_of(problem.experts, 0, setup.experts), false);
}

void expect_same_parts(const Results& spread, const std::vector<at::Tensor>& whole, size_t i, int64_t each) {
  for (size_t rank = 0, begin = 0; rank < spread.size(); ++rank) {
    const int64_t count = each > 0 ? each : spread[rank][i].size(0);
    EXPECT_TRUE(at::equal(spread[rank][i], whole[i].narrow(0, static_cast<int64_t>(begin), count)))
        << kNames[i] << " of rank " << rank;
    begin += static_cast<size_t>(count);
  }
}

TEST(ExpertDispatcher, changes_no_bit_where_every_token_stays_within_a_rank) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const SpreadCase setup{.name = "", .tokens = {40, 21, 33, 50}, .experts = 8, .top_k = 1, .dtype = dtype};
    const Problem problem = make_problem(setup);
    const Results spread = run_spread(setup, problem);
    const std::vector<at::Tensor> whole = run_concatenated(setup, problem);
    for (const size_t i : {0, 1, 2}) expect_same_parts(spread, whole, i, 0);
    for (const size_t i : {3, 4}) expect_same_parts(spread, whole, i, setup.num_local());
  }
}

TEST(ExpertDispatcher, sums_gradients_of_experts_in_the_order_of_one_process) {
  const SpreadCase setup{.name = "", .tokens = {40, 21, 33, 50}, .experts = 8, .top_k = 4};
  const Problem problem = make_problem(setup);
  const Results spread = run_spread(setup, problem);
  const std::vector<at::Tensor> whole = run_concatenated(setup, problem);
  expect_same_parts(spread, whole, 2, 0);
  for (const size_t i : {3, 4}) expect_same_parts(spread, whole, i, setup.num_local());
}

TEST(ExpertDispatcher, walks_a_retained_graph_twice_with_the_same_result) {
  const SpreadCase setup{.name = "", .tokens = {20, 30}, .top_k = 3, .chunks = 2};
  const Problem problem = make_problem(setup);
  ThreadGroup group(2, "ep");
  group.run([&](Communicator& comm) {
    const ExpertDispatcher dispatcher(comm, setup.experts, setup.chunks);
    const RankInputs& rank = problem.ranks[static_cast<size_t>(comm.rank())];
    const moe::ExpertWeights experts = part_of(problem.experts, comm.rank() * 4, 4);
    const at::Tensor x_TD = rank.x_TD.clone().requires_grad_(true);
    const at::Tensor y_TD = dispatcher.apply(x_TD, rank.routing, experts, false, [] {});
    const auto walk = [&](bool retain) {
      return torch::autograd::grad({y_TD}, {x_TD, experts.down_EDF}, {rank.grad_y_TD}, retain);
    };
    const auto first = walk(true), second = walk(false);
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], second[i])) << i;
  });
}

TEST(ExpertDispatcher, needs_no_graph) {
  const SpreadCase setup{.name = "", .tokens = {20, 30}, .top_k = 3, .chunks = 2};
  const Problem problem = make_problem(setup);
  const Results with = run_spread(setup, problem);
  ThreadGroup group(2, "ep");
  group.run([&](Communicator& comm) {
    const at::NoGradGuard no_grad;
    const ExpertDispatcher dispatcher(comm, setup.experts, setup.chunks);
    const auto rank = static_cast<size_t>(comm.rank());
    const at::Tensor y_TD = dispatcher.apply(problem.ranks[rank].x_TD, problem.ranks[rank].routing,
                                             part_of(problem.experts, comm.rank() * 4, 4), false, [] {});
    EXPECT_FALSE(y_TD.requires_grad());
    EXPECT_TRUE(at::equal(y_TD, with[rank][0]));
  });
}

// Every token goes to one expert of each rank: (n - 1) / n of the slots leave, each way, in both passes.
TEST(ExpertDispatcher, sends_what_theory_says) {
  const int n = 4;
  const int64_t tokens = 32, top_k = 4, chunks = 2;
  const SpreadCase setup{
      .name = "", .tokens = {tokens, tokens, tokens, tokens}, .experts = 8, .top_k = top_k};
  Problem problem = make_problem(setup);
  for (RankInputs& rank : problem.ranks) {
    rank.routing.experts_TK =
        (at::arange(top_k, at::kInt) * 2 + at::arange(tokens, at::kInt).remainder(2).unsqueeze(1))
            .contiguous();
    const ops::SlotOrder sorted = ops::sort_by_expert(rank.routing.experts_TK, setup.experts);
    rank.routing.order_R = sorted.order_R;
    rank.routing.inverse_R = sorted.inverse_R;
    rank.routing.offsets_E1 = sorted.offsets_E1;
  }
  ThreadGroup group(n, "ep");
  group.run([&](Communicator& comm) {
    const ExpertDispatcher dispatcher(comm, setup.experts, chunks);
    run(dispatcher, problem.ranks[static_cast<size_t>(comm.rank())],
        part_of(problem.experts, comm.rank() * 2, 2), false);
    const int64_t slots = tokens * top_k * (n - 1) / n;
    EXPECT_EQ(dispatcher.traffic().rows, slots);
    EXPECT_EQ(dispatcher.traffic().slots, slots);
    const int64_t rows = 4 * slots * kWidth * 4;  // there and back, twice, fp32
    const int64_t places = 2;                     // min(experts per token, experts per rank)
    const int64_t numbers = slots * places * (4 + 4) + slots * places * 4;  // numbers and weights; gradients
    const int64_t counts = (n - 1) * chunks * 4;
    EXPECT_EQ(comm.traffic().at("all_to_all").sent_bytes, rows + numbers + counts);
    EXPECT_EQ(comm.traffic().size(), 1u);
  });
}

TEST(ExpertDispatcher, sends_a_row_once_to_a_rank) {
  const SpreadCase setup{.name = "", .tokens = {50, 50}, .experts = 8, .top_k = 8};
  const Problem problem = make_problem(setup);
  ThreadGroup group(2, "ep");
  group.run([&](Communicator& comm) {
    const ExpertDispatcher dispatcher(comm, setup.experts, 1);
    run(dispatcher, problem.ranks[static_cast<size_t>(comm.rank())],
        part_of(problem.experts, comm.rank() * 4, 4), false);
    EXPECT_EQ(dispatcher.traffic().rows, 50);
    EXPECT_EQ(dispatcher.traffic().slots, 50 * 4);
  });
}

// Six ranks on two machines of three: rows between machines, counted by their slots, and the results.
TEST(ExpertDispatcher, in_two_levels_crosses_between_machines_once_for_each) {
  constexpr int kNode = 3, kRanks = 6;
  const SpreadCase setup{
      .name = "", .tokens = {30, 17, 0, 25, 31, 8}, .experts = 12, .top_k = 5, .chunks = 2, .capacity = 11};
  const Problem problem = make_problem(setup);
  const int64_t local = setup.num_local();
  int64_t by_rank = 0, by_node = 0;  // rows that cross, one per token and rank or machine
  for (int rank = 0; rank < kRanks; ++rank) {
    const ops::Routing& routing = problem.ranks[static_cast<size_t>(rank)].routing;
    for (int64_t t = 0; t < routing.experts_TK.size(0); ++t) {
      std::set<int64_t> ranks, nodes;
      for (int64_t k = 0; k < setup.top_k; ++k) {
        if (routing.inverse_R[t * setup.top_k + k].item<int>() < 0) continue;
        const int64_t to = routing.experts_TK[t][k].item<int>() / local;
        if (to / kNode == rank / kNode) continue;
        ranks.insert(to);
        nodes.insert(to / kNode);
      }
      by_rank += static_cast<int64_t>(ranks.size());
      by_node += static_cast<int64_t>(nodes.size());
    }
  }
  Results results(kRanks);
  std::atomic<int64_t> crossed{0}, crossed_bytes{0};
  std::vector<std::unique_ptr<ThreadGroup>> rails, nodes;
  for (int place = 0; place < kNode; ++place)
    rails.push_back(std::make_unique<ThreadGroup>(kRanks / kNode, "ep_rail"));
  for (int node = 0; node < kRanks / kNode; ++node)
    nodes.push_back(std::make_unique<ThreadGroup>(kNode, "ep_node"));
  ThreadGroup all(kRanks, "ep");
  all.run([&](Communicator& comm) {
    const int rank = comm.rank();
    Communicator& rail = (*rails[static_cast<size_t>(rank % kNode)])[rank / kNode];
    Communicator& node = (*nodes[static_cast<size_t>(rank / kNode)])[rank % kNode];
    auto within = std::make_shared<ExpertDispatcher>(node, setup.experts / rail.size(), 1);
    const ExpertDispatcher dispatcher(rail, setup.experts, setup.chunks, within);
    results[static_cast<size_t>(rank)] = run(dispatcher, problem.ranks[static_cast<size_t>(rank)],
                                             part_of(problem.experts, rank * local, local), false);
    crossed += dispatcher.traffic().rows;
    crossed_bytes += rail.traffic().at("all_to_all").sent_bytes;
  });
  expect_close_results(results, run_together(setup, problem), setup.dtype);
  EXPECT_EQ(crossed, by_node);
  EXPECT_LT(by_node, by_rank);
  // Numbers, weights and their gradients of as many places as a machine has for a token; counts of the
  // chunks.
  const int64_t places = std::min(setup.top_k, setup.experts / (kRanks / kNode));
  EXPECT_EQ(crossed_bytes, by_node * (4 * kWidth * 4 + places * 12) + kRanks * setup.chunks * 4);
  const int64_t flat_places = std::min(setup.top_k, local);
  EXPECT_LT(crossed_bytes, by_rank * (4 * kWidth * 4 + flat_places * 12));
}

TEST(ExpertDispatcher, has_the_first_chunk_under_way_while_the_shared_experts_compute) {
  const SpreadCase setup{.name = "", .tokens = {20, 30}, .chunks = 3};
  const Problem problem = make_problem(setup);
  ThreadGroup group(2, "ep");
  group.run([&](Communicator& comm) {
    const ExpertDispatcher dispatcher(comm, setup.experts, setup.chunks);
    const at::NoGradGuard no_grad;
    int64_t before = 0;
    const auto rank = static_cast<size_t>(comm.rank());
    dispatcher.apply(problem.ranks[rank].x_TD, problem.ranks[rank].routing,
                     part_of(problem.experts, comm.rank() * 4, 4), false,
                     [&] { before = comm.traffic().at("all_to_all").calls; });
    // Counts, and the first chunk's numbers and rows, are under way while the shared experts compute.
    EXPECT_EQ(before, 3);
    EXPECT_EQ(comm.traffic().at("all_to_all").calls, 1 + 3 * 3);
  });
}

TEST(ExpertDispatcher, a_rank_that_fails_releases_the_others) {
  const SpreadCase setup{.name = "", .tokens = {20, 30}};
  const Problem problem = make_problem(setup);
  ThreadGroup group(2, "ep");
  std::string seen;
  EXPECT_THROW(group.run([&](Communicator& comm) {
    const ExpertDispatcher dispatcher(comm, setup.experts, 1);
    const auto rank = static_cast<size_t>(comm.rank());
    const at::Tensor x_TD = problem.ranks[rank].x_TD.clone().requires_grad_(true);
    const at::Tensor y_TD = dispatcher.apply(x_TD, problem.ranks[rank].routing,
                                             part_of(problem.experts, comm.rank() * 4, 4), false, [] {});
    if (comm.rank() == 1) throw std::runtime_error("out of coffee");
    try {
      y_TD.sum().backward();
    } catch (const CommunicationFailed& error) {
      seen = error.what();
      throw;
    }
  }),
               std::runtime_error);
  EXPECT_NE(seen.find("axis ep, rank 0, all_to_all"), std::string::npos) << seen;
}

}  // namespace
}  // namespace moebius::parallel
