// Attention of sequences whose tokens several ranks share, against that of one process.
#include "parallel/ring_attention.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <mutex>
#include <random>

#include "base/concat.h"
#include "nn/multi_token.h"
#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "parallel/thread_group.h"
#include "parallel/token_split.h"

namespace moebius::parallel {
namespace {

struct SharedBatch {
  int64_t sequences = 1, length = 8;
  std::vector<int32_t> documents{0};  // borders over all sequences

  int64_t num_tokens() const { return sequences * length; }
  ops::Segments segments() const {
    ops::Segments segments;
    segments.cu_seqlens = documents;
    segments.sequence_length = length;
    for (size_t i = 0; i + 1 < documents.size(); ++i)
      segments.max_length = std::max<int64_t>(segments.max_length, documents[i + 1] - documents[i]);
    return segments;
  }
};

// Sequences cut into documents of random lengths, some of them empty or of one token.
SharedBatch random_batch(std::mt19937& random, int64_t sequences, int64_t length) {
  SharedBatch batch{sequences, length};
  for (int64_t s = 0; s < sequences; ++s) {
    int64_t at = 0;
    while (at < length) {
      const int64_t most = random() % 3 == 0 ? 2 : length;
      at = std::min(length, at + static_cast<int64_t>(random() % static_cast<uint64_t>(most + 1)));
      batch.documents.push_back(static_cast<int32_t>(s * length + at));
    }
  }
  return batch;
}

// The token of the whole batch that each row of a rank holds.
std::vector<int64_t> tokens_of_rank(const TokenSplit& split, const SharedBatch& batch, int rank) {
  std::vector<int64_t> tokens;
  for (int64_t s = 0; s < batch.sequences; ++s)
    for (const TokenSplit::Chunk& chunk : split.chunks(rank))
      for (int64_t t = chunk.begin; t < chunk.end; ++t) tokens.push_back(s * batch.length + t);
  return tokens;
}

TEST(TokenSplit, gives_every_token_to_one_rank_and_equally_many_to_each_where_they_divide) {
  for (const int ranks : {1, 2, 3, 4, 7})
    for (const int64_t length : {0, 1, 2, 5, 8, 12, 21, 24, 84}) {
      const TokenSplit split(length, ranks);
      std::vector<int64_t> seen;
      for (int rank = 0; rank < ranks; ++rank) {
        const auto [first, second] = split.chunks(rank);
        EXPECT_LE(first.end, second.begin);
        EXPECT_EQ(first.size() + second.size(), split.tokens(rank));
        for (const auto& chunk : {first, second})
          for (int64_t t = chunk.begin; t < chunk.end; ++t) seen.push_back(t);
        if (length % ranks == 0) {
          EXPECT_EQ(split.tokens(rank), length / ranks) << rank << " of " << ranks;
        }
      }
      std::sort(seen.begin(), seen.end());
      ASSERT_EQ(static_cast<int64_t>(seen.size()), length);
      for (int64_t t = 0; t < length; ++t) EXPECT_EQ(seen[static_cast<size_t>(t)], t);
    }
}

// With one document ranks have the same number of products of queries and keys, up to the diagonal.
TEST(TokenSplit, shares_the_work_of_a_causal_mask_evenly) {
  const SharedBatch batch{1, 4096, {0, 4096}};
  for (const int ranks : {2, 4, 8}) {
    const TokenSplit split(batch.length, ranks);
    std::vector<int64_t> work(static_cast<size_t>(ranks));
    for (int rank = 0; rank < ranks; ++rank)
      for (int keys = 0; keys < ranks; ++keys)
        for (const auto& piece : split.pieces(batch.documents, rank, keys, 0))
          work[static_cast<size_t>(rank)] += piece.first_seen >= piece.num_keys()
                                                 ? piece.num_queries() * piece.num_keys()
                                                 : piece.num_queries() * (piece.num_queries() + 1) / 2;
    for (const int64_t each : work) EXPECT_EQ(each, 4096 * 4097 / 2 / ranks);
  }
}

TEST(TokenSplit, pieces_are_every_pair_of_a_query_and_a_key_that_it_sees_once) {
  std::mt19937 random(3);
  for (int round = 0; round < 60; ++round) {
    const int ranks = static_cast<int>(random() % 4 + 1);
    const SharedBatch batch =
        random_batch(random, static_cast<int64_t>(random() % 3 + 1), static_cast<int64_t>(random() % 30 + 1));
    const int64_t window = random() % 2 == 0 ? 0 : static_cast<int64_t>(random() % 12 + 1);
    const TokenSplit split(batch.length, ranks);
    std::map<std::pair<int64_t, int64_t>, int> seen, expected;
    for (size_t i = 0; i + 1 < batch.documents.size(); ++i)
      for (int64_t q = batch.documents[i]; q < batch.documents[i + 1]; ++q)
        for (int64_t k = batch.documents[i]; k <= q; ++k)
          if (window == 0 || k > q - window) expected[{q, k}] = 1;
    for (int rank = 0; rank < ranks; ++rank)
      for (int keys = 0; keys < ranks; ++keys) {
        const auto query_tokens = tokens_of_rank(split, batch, rank),
                   key_tokens = tokens_of_rank(split, batch, keys);
        std::vector<std::pair<int64_t, int64_t>> runs;
        int64_t group = -1;
        for (const auto& piece : split.pieces(batch.documents, rank, keys, window)) {
          EXPECT_GE(piece.group, group);
          group = piece.group;
          runs.emplace_back(piece.query_begin, piece.query_end);
          for (int64_t q = piece.query_begin; q < piece.query_end; ++q) {
            const int64_t last = piece.first_seen + q - piece.query_begin;
            for (int64_t k = 0; k < std::min(last, piece.num_keys()); ++k)
              if (window == 0 || k >= last - window)
                ++seen[{query_tokens.at(static_cast<size_t>(q)),
                        key_tokens.at(static_cast<size_t>(piece.key_begin + k))}];
          }
        }
        // What the kernels ask for.
        for (const auto& a : runs)
          for (const auto& b : runs)
            EXPECT_TRUE(a == b || a.second <= b.first || b.second <= a.first) << "round " << round;
      }
    EXPECT_EQ(seen, expected) << "round " << round;
  }
}

struct AttentionResult {
  at::Tensor out, grad_qkv, grad_sinks;
};

// As several ranks compute it, put together again.
AttentionResult ring_attention(const at::Tensor& qkv, const at::Tensor& sinks, const at::Tensor& grad_out,
                               const SharedBatch& batch, const ops::AttentionShape& shape,
                               ThreadGroup& group) {
  AttentionResult whole{at::zeros_like(grad_out), at::zeros_like(qkv),
                        sinks.defined() ? at::zeros_like(sinks) : at::Tensor()};
  std::mutex mutex;
  const TokenSplit split(batch.length, group.size());
  group.run([&](Communicator& comm) {
    const auto axis = make_context_axis(comm);
    const at::Tensor own = rows_of_rank(qkv, split, batch.length, comm.rank()).detach().requires_grad_(true);
    at::Tensor own_sinks;
    if (sinks.defined()) own_sinks = sinks.detach().clone().requires_grad_(true);
    const at::Tensor out = axis->attention(own, batch.segments(), shape, own_sinks);
    out.backward(rows_of_rank(grad_out, split, batch.length, comm.rank()));
    const at::Tensor rows = at::tensor(tokens_of_rank(split, batch, comm.rank()), at::kLong);
    const std::lock_guard lock(mutex);
    whole.out.index_copy_(0, rows, out.detach());
    whole.grad_qkv.index_copy_(0, rows, own.grad());
    if (sinks.defined()) whole.grad_sinks.add_(own_sinks.grad());
  });
  return whole;
}

AttentionResult whole_attention(const at::Tensor& qkv, const at::Tensor& sinks, const at::Tensor& grad_out,
                                const SharedBatch& batch, const ops::AttentionShape& shape) {
  const at::Tensor own = qkv.detach().to(at::kFloat).requires_grad_(true);
  at::Tensor own_sinks;
  if (sinks.defined()) own_sinks = sinks.detach().clone().requires_grad_(true);
  const at::Tensor out = ops::attention(own, batch.segments(), shape, own_sinks);
  out.backward(grad_out.to(at::kFloat));
  return {out.detach(), own.grad(), sinks.defined() ? own_sinks.grad() : at::Tensor()};
}

void expect_close(const at::Tensor& got, const at::Tensor& want, at::ScalarType dtype,
                  const std::string& what) {
  if (!want.defined()) return;
  EXPECT_LE(ops::cases::normalised_error(got.to(at::kDouble), want.to(at::kDouble)),
            ops::cases::tolerance(ops::cases::OpClass::chain, dtype))
      << what;
}

TEST(RingAttention, is_attention_of_one_process_with_its_gradients) {
  std::mt19937 random(5);
  at::manual_seed(5);
  for (int round = 0; round < 40; ++round) {
    const int ranks = static_cast<int>(random() % 4 + 2);
    // Among them lengths that the ranks do not divide, and sequences with fewer tokens than chunks.
    const int64_t length = static_cast<int64_t>(round % 5 == 0 ? random() % 6 + 1 : random() % 150 + 1);
    const SharedBatch batch = round % 3 == 0
                                  ? SharedBatch{1, length, {0, static_cast<int32_t>(length)}}
                                  : random_batch(random, static_cast<int64_t>(random() % 3 + 1), length);
    const int64_t kv_heads = static_cast<int64_t>(random() % 2 + 1);
    ops::AttentionShape shape{kv_heads * static_cast<int64_t>(random() % 3 + 1), kv_heads,
                              static_cast<int64_t>(random() % 3 + 1) * 12};
    if (random() % 3 == 0) shape.value_dim = 20;
    if (random() % 2 == 0) shape.window = static_cast<int64_t>(random() % 40 + 1);
    if (random() % 4 == 0) shape.scale = 0.3;
    const at::ScalarType dtype = random() % 3 == 0 ? at::kBFloat16 : at::kFloat;
    const at::Tensor qkv = at::randn({batch.num_tokens(), shape.row_width()}).to(dtype),
                     grad_out = at::randn({batch.num_tokens(), shape.out_width()}).to(dtype),
                     sinks = random() % 2 == 0 ? at::randn({shape.num_heads}) : at::Tensor();
    ThreadGroup group(ranks, "cp");
    const AttentionResult got = ring_attention(qkv, sinks, grad_out, batch, shape, group),
                          want = whole_attention(qkv, sinks, grad_out, batch, shape);
    const std::string what =
        concat("round ", round, ", ", ranks, " ranks, length ", length, ", window ", shape.window);
    expect_close(got.out, want.out, dtype, what + ": out");
    expect_close(got.grad_qkv, want.grad_qkv, dtype, what + ": gradient");
    // One number per head, a sum of many that cancel: results rounded to bf16 leave little of it.
    if (dtype == at::kFloat)
      expect_close(got.grad_sinks, want.grad_sinks, dtype, what + ": gradient of the sinks");
  }
}

TEST(RingAttention, has_the_same_bits_in_every_run) {
  at::manual_seed(6);
  const SharedBatch batch{2, 60, {0, 17, 60, 61, 120}};
  const ops::AttentionShape shape{4, 2, 16};
  const at::Tensor qkv = at::randn({batch.num_tokens(), shape.row_width()}),
                   grad_out = at::randn({batch.num_tokens(), shape.out_width()});
  std::vector<AttentionResult> results;
  for (int i = 0; i < 2; ++i) {
    ThreadGroup group(3, "cp");
    results.push_back(ring_attention(qkv, {}, grad_out, batch, shape, group));
  }
  EXPECT_TRUE(at::equal(results[0].out, results[1].out));
  EXPECT_TRUE(at::equal(results[0].grad_qkv, results[1].grad_qkv));
}

// Forward (n - 1) / n of the keys and values, backward the same and their gradients in fp32.
TEST(RingAttention, sends_what_theory_says) {
  at::manual_seed(7);
  const SharedBatch batch{2, 48, {0, 20, 48, 96}};
  const ops::AttentionShape shape{4, 2, 16, 24};
  for (const int ranks : {2, 3, 4})
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const at::Tensor qkv = at::randn({batch.num_tokens(), shape.row_width()}).to(dtype),
                       grad_out = at::randn({batch.num_tokens(), shape.out_width()}).to(dtype);
      ThreadGroup group(ranks, "cp");
      ring_attention(qkv, {}, grad_out, batch, shape, group);
      const int64_t values = batch.num_tokens() / ranks * (ranks - 1) * 2 * (16 + 24);
      const auto bytes = static_cast<int64_t>(c10::elementSize(dtype));
      for (int rank = 0; rank < ranks; ++rank) {
        const auto traffic = group[rank].traffic();
        EXPECT_EQ(traffic.at("all_to_all").sent_bytes, values * (2 * bytes + 4)) << ranks;
        EXPECT_EQ(traffic.at("all_to_all").calls, 3 * (ranks - 1)) << ranks;
      }
    }
}

TEST(RingAttention, runs_without_gradients) {
  at::manual_seed(8);
  const SharedBatch batch{1, 16, {0, 16}};
  const ops::AttentionShape shape{2, 1, 8};
  const at::Tensor qkv = at::randn({16, shape.row_width()});
  const at::Tensor want = ops::attention(qkv, batch.segments(), shape);
  ThreadGroup group(2, "cp");
  group.run([&](Communicator& comm) {
    const at::NoGradGuard no_grad;
    const TokenSplit split(batch.length, 2);
    const at::Tensor out = make_context_axis(comm)->attention(
        rows_of_rank(qkv, split, batch.length, comm.rank()), batch.segments(), shape, {});
    EXPECT_FALSE(out.requires_grad());
    expect_close(out, rows_of_rank(want, split, batch.length, comm.rank()), at::kFloat, "out");
  });
}

TEST(PartOfBatch, has_the_ranks_tokens_and_what_comes_behind_them_in_their_documents) {
  nn::TokenBatch whole;
  whole.tokens_T = at::arange(100, 124, at::kLong);
  whole.targets_T = whole.tokens_T + 1;
  whole.positions_T = at::cat({at::arange(12, at::kInt), at::arange(5, at::kInt), at::arange(7, at::kInt)});
  whole.documents.cu_seqlens = {0, 12, 17, 24};
  whole.documents.sequence_length = 12;
  whole.sequence_of_T = at::arange(2, at::kInt).repeat_interleave(12);
  whole.num_sequences = 2;
  const nn::MultiToken::Shifted next =
      nn::MultiToken::shift(whole.tokens_T, whole.targets_T, whole.positions_T);
  for (int rank = 0; rank < 2; ++rank) {
    const nn::TokenBatch part = part_of_batch(whole, {2, rank}, true);
    const at::Tensor rows =
        at::tensor(tokens_of_rank(TokenSplit(12, 2), {2, 12, whole.documents.cu_seqlens}, rank), at::kLong);
    for (const auto& [got, want] : {std::pair{part.tokens_T, whole.tokens_T},
                                    {part.targets_T, whole.targets_T},
                                    {part.positions_T, whole.positions_T},
                                    {part.sequence_of_T, whole.sequence_of_T},
                                    {part.next_tokens_T, next.tokens_T},
                                    {part.next_targets_T, next.targets_T}})
      EXPECT_TRUE(at::equal(got, want.index_select(0, rows)));
    EXPECT_EQ(part.documents.cu_seqlens, whole.documents.cu_seqlens);
  }
  EXPECT_FALSE(part_of_batch(whole, {2, 0}, false).next_tokens_T.defined());
  EXPECT_TRUE(part_of_batch(whole, {1, 0}, true).tokens_T.is_same(whole.tokens_T));
}

}  // namespace
}  // namespace moebius::parallel
