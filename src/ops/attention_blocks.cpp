// Shapes: n documents and g key heads of a block, r query heads that share a key head, m queries, k keys,
// d elements of a query or key head, e of a value head.
#include "ops/attention_blocks.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "ops/attention_parts.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t kMostQueries = 512;

// One block: documents [document, document + documents), key heads [head, head + heads), queries and keys of
// each document.
struct Block {
  int64_t document, documents, head, heads;
  int64_t query, queries, key, keys;
};

std::vector<Block> blocks_of(const DocumentRun& run, const AttentionShape& shape, int64_t score_bytes) {
  const int64_t num_documents = (run.end - run.begin) / run.length;
  const int64_t queries = std::min(run.length, kMostQueries);
  const int64_t most_keys = shape.window > 0 ? std::min(run.length, queries + shape.window) : run.length;
  const int64_t shared = shape.num_heads / shape.num_kv_heads;
  const int64_t at_once = std::max<int64_t>(1, score_bytes / (4 * queries * most_keys * shared));
  const int64_t heads = std::min(at_once, shape.num_kv_heads);
  const int64_t documents = std::clamp<int64_t>(at_once / heads, 1, num_documents);
  std::vector<Block> blocks;
  for (int64_t document = 0; document < num_documents; document += documents)
    for (int64_t head = 0; head < shape.num_kv_heads; head += heads)
      for (int64_t query = 0; query < run.length; query += queries) {
        const int64_t end = std::min(query + queries, run.length);
        const int64_t key = shape.window > 0 ? std::max<int64_t>(0, query - shape.window + 1) : 0;
        blocks.push_back({document, std::min(documents, num_documents - document), head,
                          std::min(heads, shape.num_kv_heads - head), query, end - query, key, end - key});
      }
  return blocks;
}

// The part of (B, G, S, d) that belongs to the keys of a block, (n * g, k, d) in fp32.
at::Tensor keys_of(const at::Tensor& x, const Block& b) {
  return x.narrow(0, b.document, b.documents)
      .narrow(1, b.head, b.heads)
      .narrow(2, b.key, b.keys)
      .to(at::kFloat)
      .reshape({b.documents * b.heads, b.keys, x.size(3)});
}

// The part of (B, H, S, ...) that belongs to the queries of a block, a view.
at::Tensor query_part(const at::Tensor& x, const Block& b, int64_t shared) {
  return x.narrow(0, b.document, b.documents)
      .narrow(1, b.head * shared, b.heads * shared)
      .narrow(2, b.query, b.queries);
}

// The same as (n * g, r * m, d) in fp32.
at::Tensor queries_of(const at::Tensor& x, const Block& b, int64_t shared) {
  return query_part(x, b, shared)
      .to(at::kFloat)
      .reshape({b.documents * b.heads, shared * b.queries, x.size(3)});
}

// Scaled scores (n, g * r, m, k), minus infinity where a query does not see a key.
at::Tensor scores_of(const at::Tensor& queries, const at::Tensor& keys, const Block& b,
                     const AttentionShape& shape) {
  const int64_t shared = shape.num_heads / shape.num_kv_heads;
  at::Tensor scores = at::bmm(queries, keys.transpose(1, 2)).mul_(shape.score_scale());
  scores = scores.view({b.documents, b.heads * shared, b.queries, b.keys});
  const at::Tensor hidden = seen_keys(b.queries, b.keys, shape.window, scores.device()).logical_not();
  return scores.masked_fill_(hidden, -std::numeric_limits<float>::infinity());
}

at::Tensor sinks_of(const at::Tensor& sinks_H, const Block& b, int64_t shared) {
  return sinks_H.narrow(0, b.head * shared, b.heads * shared).to(at::kFloat).view({1, -1, 1});
}

AttentionParts part_of(const at::Tensor& qkv, const DocumentRun& run, const AttentionShape& shape) {
  return by_document(rows_of(split_heads(qkv, shape), run), run.length);
}

// Rows of a run of (T, H * e) as (B, H, S, e).
at::Tensor out_part(const at::Tensor& out, const DocumentRun& run, const AttentionShape& shape) {
  return by_document(
      out.narrow(0, run.begin, run.end - run.begin).view({-1, shape.num_heads, shape.value_width()}),
      run.length);
}

// Rows of a run of (T, H) as (B, H, S).
at::Tensor lse_part(const at::Tensor& lse, const DocumentRun& run) {
  return lse.narrow(0, run.begin, run.end - run.begin).view({-1, run.length, lse.size(1)}).transpose(1, 2);
}

struct Plan {
  std::vector<DocumentRun> runs;
  AttentionShape shape;
  int64_t score_bytes;
};

class BlockAttention : public Function<BlockAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv,
                            const std::optional<at::Tensor>& sinks, const Plan& plan) {
    const AttentionShape& shape = plan.shape;
    const int64_t shared = shape.num_heads / shape.num_kv_heads, e = shape.value_width();
    at::Tensor out = at::empty({qkv.size(0), shape.out_width()}, qkv.options());
    at::Tensor lse = at::empty({qkv.size(0), shape.num_heads}, qkv.options().dtype(at::kFloat));
    for (const DocumentRun& run : plan.runs) {
      const AttentionParts in = part_of(qkv, run, shape);
      const at::Tensor outs = out_part(out, run, shape), sums = lse_part(lse, run);
      for (const Block& b : blocks_of(run, shape, plan.score_bytes)) {
        at::Tensor scores = scores_of(queries_of(in.q, b, shared), keys_of(in.k, b), b, shape);
        at::Tensor own_lse = at::logsumexp(scores, {3});
        if (sinks) own_lse = at::logaddexp(own_lse, sinks_of(*sinks, b, shared));
        scores.sub_(own_lse.unsqueeze(3)).exp_();
        const at::Tensor y =
            at::bmm(scores.view({b.documents * b.heads, shared * b.queries, b.keys}), keys_of(in.v, b));
        query_part(outs, b, shared).copy_(y.view({b.documents, b.heads * shared, b.queries, e}));
        query_part(sums, b, shared).copy_(own_lse);
      }
    }
    ctx->save_for_backward({qkv, out, lse, sinks.value_or(at::Tensor())});
    ctx->set_materialize_grads(false);
    std::vector<int64_t> runs;
    for (const DocumentRun& run : plan.runs) runs.insert(runs.end(), {run.begin, run.end, run.length});
    ctx->saved_data["runs"] = runs;
    ctx->saved_data["sizes"] = std::vector<int64_t>{shape.num_heads, shape.num_kv_heads, shape.head_dim,
                                                    shape.value_dim, shape.window,       plan.score_bytes};
    ctx->saved_data["scale"] = shape.scale;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(3);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &qkv = saved[0], &out = saved[1], &lse = saved[2], &sinks = saved[3];
    const Plan plan = plan_of(ctx);
    const AttentionShape& shape = plan.shape;
    const int64_t shared = shape.num_heads / shape.num_kv_heads;
    const at::Tensor grad_out = grads[0].contiguous();
    at::Tensor grad_qkv = at::empty_like(qkv), grad_sinks;
    if (sinks.defined()) grad_sinks = at::zeros(sinks.sizes(), sinks.options().dtype(at::kFloat));
    for (const DocumentRun& run : plan.runs) {
      const AttentionParts in = part_of(qkv, run, shape), columns = part_of(grad_qkv, run, shape);
      const at::Tensor outs = out_part(out, run, shape), grad_outs = out_part(grad_out, run, shape),
                       sums = lse_part(lse, run);
      const at::Tensor grad_k = at::zeros(in.k.sizes(), in.k.options().dtype(at::kFloat)),
                       grad_v = at::zeros(in.v.sizes(), in.v.options().dtype(at::kFloat));
      for (const Block& b : blocks_of(run, shape, plan.score_bytes)) {
        const std::vector<int64_t> flat{b.documents * b.heads, shared * b.queries, b.keys};
        const at::Tensor q = queries_of(in.q, b, shared), k = keys_of(in.k, b), v = keys_of(in.v, b),
                         grad_y = queries_of(grad_outs, b, shared);
        const at::Tensor own_lse = query_part(sums, b, shared);
        const at::Tensor weights = scores_of(q, k, b, shape).sub_(own_lse.unsqueeze(3)).exp_();
        // What each query's weights would all lose to a weight that leads to nothing.
        const at::Tensor mean =
            (grad_y * queries_of(outs, b, shared)).sum(2).view({b.documents, b.heads * shared, b.queries});
        if (sinks.defined()) {
          const at::Tensor taken =
              (sinks_of(sinks, b, shared) - own_lse).exp_().mul_(mean).sum(at::IntArrayRef{0, 2});
          grad_sinks.narrow(0, b.head * shared, b.heads * shared).sub_(taken);
        }
        add_to(grad_v, b, at::bmm(weights.view(flat).transpose(1, 2), grad_y));
        at::Tensor grad_scores = at::bmm(grad_y, v.transpose(1, 2)).view_as(weights);
        grad_scores.sub_(mean.unsqueeze(3)).mul_(weights).mul_(shape.score_scale());
        add_to(grad_k, b, at::bmm(grad_scores.view(flat).transpose(1, 2), q));
        query_part(columns.q, b, shared)
            .copy_(at::bmm(grad_scores.view(flat), k)
                       .view({b.documents, b.heads * shared, b.queries, shape.head_dim}));
      }
      columns.k.copy_(grad_k);
      columns.v.copy_(grad_v);
    }
    if (sinks.defined()) grad_sinks = grad_sinks.to(sinks.scalar_type());
    return {grad_qkv, grad_sinks, {}};
  }

 private:
  // Adds (n * g, k, d) to the keys of the block in (B, G, S, d).
  static void add_to(const at::Tensor& sum, const Block& b, const at::Tensor& part) {
    sum.narrow(0, b.document, b.documents)
        .narrow(1, b.head, b.heads)
        .narrow(2, b.key, b.keys)
        .add_(part.view({b.documents, b.heads, b.keys, -1}));
  }

  static Plan plan_of(AutogradContext* ctx) {
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector(),
                               runs = ctx->saved_data["runs"].toIntVector();
    Plan plan;
    plan.shape = {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], ctx->saved_data["scale"].toDouble()};
    plan.score_bytes = sizes[5];
    for (size_t i = 0; i < runs.size(); i += 3) plan.runs.push_back({runs[i], runs[i + 1], runs[i + 2]});
    return plan;
  }
};

}  // namespace

at::Tensor seen_keys(int64_t num_queries, int64_t num_keys, int64_t window, at::Device device) {
  const int64_t before = num_keys - num_queries;
  at::Tensor seen =
      at::ones({num_queries, num_keys}, at::TensorOptions().dtype(at::kBool).device(device)).tril_(before);
  if (window > 0) seen.triu_(before - window + 1);
  return seen;
}

at::Tensor attention_in_blocks(const at::Tensor& qkv_TC, const Segments& segments,
                               const AttentionShape& shape, const at::Tensor& sinks_H, int64_t score_bytes) {
  MOEBIUS_CHECK(qkv_TC.dim() == 2 && qkv_TC.size(1) == shape.row_width(), "attention on ", qkv_TC.sizes());
  std::optional<at::Tensor> sinks;
  if (sinks_H.defined()) sinks = sinks_H;
  return BlockAttention::apply(qkv_TC.contiguous(), sinks, Plan{runs_of(segments), shape, score_bytes});
}

}  // namespace moebius::ops
