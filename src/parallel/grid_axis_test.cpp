#include "parallel/grid_axis.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <random>

#include "base/error.h"
#include "config/validate.h"
#include "moe/moe_feed_forward.h"
#include "ops/norm.h"
#include "parallel/grid_norm.h"
#include "parallel/split_check.h"
#include "parallel/spread_model.h"
#include "parallel/tensor_axis.h"
#include "parallel/thread_mesh.h"

namespace moebius::parallel {
namespace {

Layout grid_layout(int side, bool experts = true) {
  Layout::Sizes sizes;
  sizes.tp = side * side;
  sizes.tp_side = side;
  sizes.ep = experts ? side : 1;
  sizes.expert_tp = experts ? side : side * side;
  return Layout(sizes);
}

config::RunConfig run_of(const config::ModelConfig& model, int side) {
  config::RunConfig config;
  config.model = model;
  config.parallel.tp = side * side;
  config.parallel.tp_mode = "2d";
  return config;
}

std::vector<SplitForm> grid_forms() {
  using Model = config::ModelConfig;
  return split_forms({
      {"balance_of_sequences",
       [](Model& m) {
         m.moe.score = "sigmoid";
         m.moe.balance.aux_loss = 0.02;
         m.moe.balance.aux_scope = "sequence";
         m.moe.balance.bias_rate = 0.001;
       }},
      {"dense", [](Model& m) { m.moe.experts = 0; }},
  });
}

void expect_grid_like_one_process(const config::ModelConfig& model, int side, nn::Recompute recompute,
                                  const std::vector<int32_t>& lengths = {9, 4, 6},
                                  at::ScalarType dtype = at::kFloat) {
  config::validate_model(model);
  check_grid_split(model, side);
  nn::TokenBatch batch = split_batch(lengths);
  std::vector<int32_t> sequences;
  for (size_t i = 0; i < lengths.size(); ++i)
    sequences.insert(sequences.end(), static_cast<size_t>(lengths[i]), static_cast<int32_t>(i));
  batch.sequence_of_T = at::tensor(sequences, at::kInt);
  batch.num_sequences = static_cast<int64_t>(lengths.size());
  const auto whole = moe::make_decoder(model);
  fill_split(whole->params(), dtype);
  const Passed want = pass_through(*whole, batch, recompute);
  const auto ranks = static_cast<size_t>(side * side);
  std::vector<Passed> got(ranks);
  std::vector<std::unique_ptr<nn::Decoder>> decoders(ranks);
  ThreadMesh mesh(grid_layout(side, model.moe.experts > 0));
  mesh.run([&](const Mesh& own) {
    const auto rank = static_cast<size_t>(own.rank());
    decoders[rank] = make_spread_decoder(run_of(model, side), own);
    fill_split(decoders[rank]->params(), dtype);
    got[rank] = pass_through(*decoders[rank], batch, recompute);
  });
  for (size_t rank = 0; rank < ranks; ++rank)
    expect_like_whole(want, decoders, got, rank,
                      nn::share_of(batch.tokens_T.size(0), {side, static_cast<int>(rank) / side}), dtype);
}

TEST(GridAxis, every_form_of_a_decoder_is_that_of_one_process) {
  for (const SplitForm& form : grid_forms()) {
    SCOPED_TRACE(form.name);
    config::ModelConfig model = split_model();
    form.change(model);
    expect_grid_like_one_process(model, 2, nn::Recompute::none);
  }
}

TEST(GridAxis, nine_ranks_whose_shares_of_tokens_and_vocabulary_differ) {
  config::ModelConfig model = split_model();
  model.heads = model.kv_heads = 9;
  model.ffn_dim = 42;
  model.vocab = 52;
  grid_forms().front().change(model);
  for (const std::vector<int32_t>& lengths : {std::vector<int32_t>{9, 4, 6}, {3, 1, 3}})
    expect_grid_like_one_process(model, 3, nn::Recompute::none, lengths);
}

// Without a router, whose choices follow from the last bit.
TEST(GridAxis, sixteen_bits) {
  config::ModelConfig model = split_model();
  model.layers = 1;
  model.moe.experts = 0;
  model.moe.dense_layers = {};
  model.attention_bias = model.ffn_bias = true;
  for (const nn::Recompute recompute : {nn::Recompute::none, nn::Recompute::selective})
    expect_grid_like_one_process(model, 2, recompute, {9, 4, 6}, at::kBFloat16);
}

TEST(GridAxis, models_of_random_shapes) {
  for (uint32_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const auto draw = [&](int64_t least, int64_t most) {
      return least + static_cast<int64_t>(random() % static_cast<uint32_t>(most - least + 1));
    };
    const int side = 2 + static_cast<int>(seed % 2);
    config::ModelConfig model = split_model();
    model.dim = side * draw(3, 14);
    model.kv_heads = side * side * draw(1, 2);
    model.heads = model.kv_heads * draw(1, 3);
    model.head_dim = 2 * draw(1, 5);
    model.ffn_dim = side * draw(1, 20);
    model.vocab = kVocab + draw(0, 20);
    model.tied_embeddings = draw(0, 1) == 1;
    model.moe.experts = side * draw(1, 3);
    model.moe.top_k = draw(1, std::min<int64_t>(3, model.moe.experts));
    // Divided by itself, a single weight is 1: the router's gradient would be what rounding leaves of a sum.
    model.moe.normalize_weights = model.moe.top_k > 1;
    model.moe.expert_dim = side * draw(1, 9);
    model.moe.balance.aux_loss = 0.02;
    std::vector<int32_t> lengths{3};
    for (int64_t documents = draw(1, 4); documents > 0; --documents)
      lengths.push_back(static_cast<int32_t>(draw(1, 11)));
    lengths.push_back(3);
    expect_grid_like_one_process(model, side, nn::Recompute::none, lengths);
  }
}

TEST(GridAxis, what_is_computed_again_is_exchanged_again) {
  for (const nn::Recompute recompute : {nn::Recompute::selective, nn::Recompute::full})
    for (const SplitForm& form : {grid_forms()[0], grid_forms()[2]}) {
      config::ModelConfig model = split_model();
      form.change(model);
      expect_grid_like_one_process(model, 2, recompute);
    }
}

// Each parameter of a layer is in blocks: no rank has more than 1 / n of the weights of pairs and experts,
// and 1 / q of what is as wide as the model or as long as the vocabulary.
TEST(GridAxis, a_rank_holds_its_blocks) {
  config::ModelConfig model = split_model();
  model.moe.shared_experts = 1;
  model.vocab = 52;
  for (const int side : {2, 4}) {
    model.heads = model.kv_heads = side * side;
    model.moe.experts = 8;
    ThreadMesh mesh(grid_layout(side));
    mesh.run([&](const Mesh& own) {
      const auto decoder = make_spread_decoder(run_of(model, side), own);
      for (const nn::Param& param : decoder->params().params()) {
        const int64_t whole = param.spec.num_elements();
        const bool is_router = param.spec.klass == nn::ParamClass::router;
        const bool is_norm = param.spec.klass == nn::ParamClass::norm;
        EXPECT_EQ(param.num_local_elements() * (is_router ? 1
                                                : is_norm ? side
                                                          : side * side),
                  whole)
            << param.spec.name;
      }
    });
  }
}

TEST(GridAxis, a_split_norm_is_that_of_the_whole_width) {
  const int side = 3;
  const int64_t num_tokens = 5, width = 4;
  at::manual_seed(6);
  for (const bool adds : {false, true}) {
    const at::Tensor x = at::randn({num_tokens, side * width}), delta = at::randn({num_tokens, side * width}),
                     weight = at::randn({side * width}), grad = at::randn({num_tokens, side * width}),
                     grad_sum = at::randn({num_tokens, side * width});
    const auto pass = [&](const auto& of, const auto& norm) {
      std::vector<at::Tensor> leaves;
      for (const at::Tensor& each : {x, delta, weight})
        leaves.push_back(of(each).contiguous().clone().set_requires_grad(true));
      const auto [sum, y] = norm(leaves[0], adds ? leaves[1] : at::Tensor(), leaves[2]);
      at::Tensor total = (y * of(grad)).sum();
      if (adds) total = total + (sum * of(grad_sum)).sum();
      total.backward();
      std::vector<at::Tensor> results{sum.detach(), y.detach(), leaves[0].grad(), leaves[2].grad()};
      if (adds) results.push_back(leaves[1].grad());
      return results;
    };
    const std::vector<at::Tensor> want = pass(
        [](const at::Tensor& all) { return all; },
        [](const at::Tensor& a, const at::Tensor& b, const at::Tensor& w) {
          return b.defined() ? ops::add_rms_norm(a, b, w, 1e-5) : std::pair(a, ops::rms_norm(a, w, 1e-5));
        });
    std::vector<std::vector<at::Tensor>> got(side);
    ThreadGroup group(side, "tp_row");
    group.run([&](Communicator& row) {
      const auto part = [&](const at::Tensor& all) { return all.narrow(-1, row.rank() * width, width); };
      got[static_cast<size_t>(row.rank())] =
          pass(part, [&](const at::Tensor& a, const at::Tensor& b, const at::Tensor& w) {
            return split_rms_norm(row, a, b, w, 1e-5);
          });
    });
    for (int rank = 0; rank < side; ++rank)
      for (size_t i = 0; i < want.size(); ++i)
        expect_close(concat("result ", i, " of rank ", rank), got[static_cast<size_t>(rank)][i],
                     want[i].narrow(-1, rank * width, width));
  }
}

// Bytes that each rank sends on the axes of its grid in a pass through a dense decoder.
std::map<std::string, int64_t> sent_of_a_pass(int side, int64_t layers, int64_t num_tokens) {
  config::ModelConfig model = split_model();
  model.layers = layers;
  model.dim = model.ffn_dim = 48;
  model.heads = model.kv_heads = 36;
  model.head_dim = 4;
  model.vocab = 48;
  model.moe.experts = 0;
  model.moe.dense_layers = {};
  const nn::TokenBatch batch = nn::document_batch({static_cast<int32_t>(num_tokens)}, model.vocab);
  std::map<std::string, int64_t> sent;
  std::mutex mutex;
  ThreadMesh mesh(grid_layout(side, false));
  mesh.run([&](const Mesh& own) {
    const auto decoder = make_spread_decoder(run_of(model, side), own);
    fill_split(decoder->params());
    decoder->loss(decoder->forward(batch, {}).hidden_TD, batch.targets_T, 1.0).backward();
    const std::lock_guard lock(mutex);
    for (const auto& [axis, by_collective] : own.traffic()) {
      int64_t bytes = 0;
      for (const auto& [collective, traffic] : by_collective) bytes += traffic.sent_bytes;
      const auto [found, is_first] = sent.emplace(axis, bytes);
      EXPECT_EQ(found->second, bytes) << axis << ": ranks differ";
    }
  });
  return sent;
}

TEST(GridAxis, a_layer_sends_what_theory_says) {
  const int64_t tokens = 36, dim = 48, hidden = 48, heads = 36 * 4, fused = 3 * heads, element = 4;
  for (const int side : {2, 3}) {
    SCOPED_TRACE(side);
    const std::map<std::string, int64_t> one = sent_of_a_pass(side, 1, tokens),
                                         two = sent_of_a_pass(side, 2, tokens);
    const int64_t q = side, n = q * q, others = q - 1, input = tokens * dim;
    // Along the row: x of both first products three times, y of the second products twice.
    const int64_t blocks_row = (2 * 3 + 2 * 2) * input * others / n;
    // Two norms, forward and backward: a number per token of the row, all-reduced.
    const int64_t norms_row = 4 * (2 * (tokens / q * element) * others / q);
    // Along the column: each weight three times; queries, keys, values and mixed values forth and back.
    const int64_t weights = fused * dim + heads * dim + 3 * hidden * dim;
    const int64_t exchanges = 2 * (tokens * fused + tokens * heads) * others / (q * n);
    const int64_t norms_column = 2 * (2 * (dim / q * element) * others / q);
    EXPECT_EQ(two.at("tp_row") - one.at("tp_row"), element * blocks_row + norms_row);
    EXPECT_EQ(two.at("tp_column") - one.at("tp_column"),
              element * (3 * weights * others / n + exchanges) + norms_column);
    // The lookup alone: blocks of 1 / n, there and back, between ranks off the diagonal.
    EXPECT_EQ(two.at("tp"), element * 2 * input / n);
    EXPECT_EQ(one.at("tp"), two.at("tp"));
    // O(1 / sqrt(n)): never above 1 / q of the matrices and what is exchanged of them.
    const int64_t matrices = 10 * input + 3 * weights + 2 * tokens * (fused + heads);
    EXPECT_LT(two.at("tp_row") - one.at("tp_row") + two.at("tp_column") - one.at("tp_column"),
              element * (matrices + 4 * tokens + 4 * dim) / q);
  }
}

void expect_grid_refused(const std::function<void(config::ModelConfig&)>& change, int64_t side,
                         const std::string& text) {
  config::ModelConfig model = split_model();
  change(model);
  try {
    check_grid_split(model, side);
    ADD_FAILURE() << "not refused: " << text;
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find(text), std::string::npos) << error.what();
  }
}

TEST(GridAxis, refuses_what_its_sides_do_not_divide) {
  using Model = config::ModelConfig;
  const std::string grid = "parallel.tp is 4 with parallel.tp_mode = '2d', a grid of 2 x 2, and ";
  expect_grid_refused([](Model& m) { m.dim = 25; }, 2,
                      grid + "2 does not divide model.dim = 25; change model.dim, or use another tp");
  expect_grid_refused([](Model& m) { m.heads = 6; }, 2, grid + "4 does not divide model.heads = 6");
  expect_grid_refused([](Model& m) { m.kv_heads = 2; }, 2, grid + "4 does not divide model.kv_heads = 2");
  expect_grid_refused([](Model& m) { m.ffn_dim = 41; }, 2, grid + "2 does not divide model.ffn_dim = 41");
  expect_grid_refused([](Model& m) { m.moe.experts = 5; }, 2,
                      grid + "2 does not divide model.moe.experts = 5");
  expect_grid_refused([](Model& m) { m.moe.expert_dim = 13; }, 2,
                      grid + "2 does not divide model.moe.expert_dim = 13");
  expect_grid_refused([](Model& m) { m.vocab = 1; }, 2, "the vocabulary has 1 tokens");
  expect_grid_refused([](Model& m) { m.qk_norm = "full"; }, 2, "model.qk_norm = 'full'");
  expect_grid_refused([](Model& m) { m.attention = "mla"; }, 2,
                      "model.attention is 'mla', but parallel.tp_mode = '2d' has no latent attention in "
                      "blocks; use tp_mode = '1d' with this model");
  expect_grid_refused([](Model& m) { m.mtp.depth = 1; }, 2,
                      "model.mtp.depth is 1, but parallel.tp_mode = '2d' has no multi-token prediction in "
                      "blocks; use tp_mode = '1d' with this model");
  config::ModelConfig model = split_model();
  check_grid_split(model, 2);
  check_grid_split(model, 1);
}

}  // namespace
}  // namespace moebius::parallel
