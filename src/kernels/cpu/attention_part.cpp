// Attention to part of the keys. Matrix products by run_gemm_block(), rows of scores as in attention.cpp.
#include "kernels/api/attention_part.h"

#include <map>
#include <vector>

#include "base/parallel.h"
#include "kernels/cpu/attention_products.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_part.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/attention_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

void MergeRowsOf(const ScoreRows& s, const MergedRows& m, DType dtype) {
  dtype == DType::f32 ? merge_rows<float>(s, m) : merge_rows<Bf16>(s, m);
}

void PartGradientRows(const ScoreRows& s, const GradientRows& g, DType dtype) {
  dtype == DType::f32 ? gradient_rows<float>(s, g) : gradient_rows<Bf16>(s, g);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {
namespace {

HWY_EXPORT(MergeRowsOf);
HWY_EXPORT(PartGradientRows);

// Where heads and rows lie.
class PartLayout {
 public:
  explicit PartLayout(const AttentionPartShape& shape) : shape_(shape) {}

  int64_t group() const { return shape_.num_heads / shape_.num_kv_heads; }
  int64_t out_row() const { return shape_.num_heads * shape_.value_dim; }
  int64_t query(int64_t row, int64_t head) const {
    return row * shape_.query_stride + head * shape_.head_dim;
  }
  int64_t key(int64_t row, int64_t head) const {
    return row * shape_.key_stride + head / group() * shape_.head_dim;
  }
  int64_t value(int64_t row, int64_t head) const {
    return row * shape_.key_stride + head / group() * shape_.value_dim;
  }
  int64_t out(int64_t row, int64_t head) const { return row * out_row() + head * shape_.value_dim; }
  int64_t lse(int64_t row, int64_t head) const { return head * shape_.num_queries + row; }

  const void* at(const void* base, int64_t element) const {
    return static_cast<const char*>(base) + element * size_of(shape_.dtype);
  }

 private:
  const AttentionPartShape& shape_;
};

// Some queries of a piece and those of its keys that one of them sees.
struct PartTask {
  int64_t query, num_queries, key, num_keys, first_seen;
};

PartTask part_task(const AttentionPartShape& shape, const AttentionPiece& piece, int64_t begin, int64_t end) {
  const int64_t seen = piece.first_seen + begin - piece.query_begin;
  const int64_t last = std::clamp<int64_t>(seen + (end - begin) - 1, 0, piece.num_keys());
  const int64_t first = shape.window > 0 ? std::clamp<int64_t>(seen - shape.window, 0, last) : 0;
  return {begin, end - begin, piece.key_begin + first, last - first, seen - first};
}

struct ForwardBlock {
  int64_t begin, end, head;
  const std::vector<const AttentionPiece*>* pieces;  // of these queries
};

void run_forward(const AttentionPartForwardArgs& args, const ForwardBlock& block) {
  thread_local Scratch scratch;
  const AttentionPartShape& shape = args.shape;
  const PartLayout at(shape);
  float* out = args.out + at.out(block.begin, block.head);
  for (const AttentionPiece* const piece : *block.pieces) {
    const PartTask task = part_task(shape, *piece, block.begin, block.end);
    const int64_t m = task.num_queries, n = task.num_keys;
    if (n == 0) continue;
    float* scores = scratch.floats(m * n);
    multiply({at.at(args.q, at.query(task.query, block.head)), shape.query_stride, false,
              at.at(args.k, at.key(task.key, block.head)), shape.key_stride, false, m, n, shape.head_dim},
             shape.dtype, scores, n, DType::f32);
    HWY_DYNAMIC_DISPATCH(MergeRowsOf)
    ({scores, n, m, n, task.first_seen, shape.scale, args.lse + at.lse(task.query, block.head), shape.window,
      nullptr},
     {out, at.out_row(), shape.value_dim}, shape.dtype);
    multiply({scores, elements_of(n, shape.dtype), false, at.at(args.v, at.value(task.key, block.head)),
              shape.key_stride, true, m, shape.value_dim, n},
             shape.dtype, out, at.out_row(), DType::f32, true);
  }
}

void run_backward(const AttentionPartBackwardArgs& args, const PartTask& task, int64_t head) {
  thread_local Scratch scores_scratch, grads_scratch;
  const AttentionPartShape& shape = args.shape;
  const DType dtype = shape.dtype;
  const PartLayout at(shape);
  const int64_t m = task.num_queries, n = task.num_keys, d = shape.head_dim, dv = shape.value_dim;
  const int64_t outs = at.out(task.query, head), stride = elements_of(n, dtype);
  const void *q = at.at(args.q, at.query(task.query, head)), *k = at.at(args.k, at.key(task.key, head)),
             *v = at.at(args.v, at.value(task.key, head)), *grad_out = at.at(args.grad_out, outs);
  float* scores = scores_scratch.floats(m * n);
  float* grads = grads_scratch.floats(m * n);
  multiply({q, shape.query_stride, false, k, shape.key_stride, false, m, n, d}, dtype, scores, n, DType::f32);
  multiply({grad_out, at.out_row(), false, v, shape.key_stride, false, m, n, dv}, dtype, grads, n,
           DType::f32);
  HWY_DYNAMIC_DISPATCH(PartGradientRows)
  ({scores, n, m, n, task.first_seen, shape.scale, const_cast<float*>(args.lse) + at.lse(task.query, head),
    shape.window, nullptr},
   {grads, at.at(args.out, outs), grad_out, at.out_row(), dv, nullptr}, dtype);
  const int64_t kv_head = head / at.group(), row = task.key * args.grad_key_stride;
  multiply({scores, stride, true, grad_out, at.out_row(), true, n, dv, m}, dtype,
           args.grad_v + row + kv_head * dv, args.grad_key_stride, DType::f32, true);
  multiply({grads, stride, true, q, shape.query_stride, true, n, d, m}, dtype,
           args.grad_k + row + kv_head * d, args.grad_key_stride, DType::f32, true);
  const int64_t query_row = shape.num_heads * d;
  multiply({grads, stride, false, k, shape.key_stride, true, m, d, n}, dtype,
           args.grad_q + task.query * query_row + head * d, query_row, DType::f32, true);
}

}  // namespace
}  // namespace moebius::kernels::cpu

namespace moebius::kernels {

using namespace cpu;  // NOLINT(google-build-using-namespace)

// A block of queries goes through all its keys in one task, so that the order of sums is fixed.
void cpu_attention_part_forward(const AttentionPartForwardArgs& args) {
  const AttentionPartShape& shape = args.shape;
  std::map<int64_t, std::vector<const AttentionPiece*>> by_queries;
  for (int64_t i = 0; i < shape.num_pieces; ++i)
    if (shape.pieces[i].num_queries() > 0)
      by_queries[shape.pieces[i].query_begin].push_back(shape.pieces + i);
  std::vector<ForwardBlock> blocks;
  for (const auto& [begin, pieces] : by_queries) {
    int64_t most_keys = 1;
    for (const AttentionPiece* const piece : pieces) most_keys = std::max(most_keys, piece->num_keys());
    const int64_t step = queries_per_block(most_keys), end = pieces.front()->query_end;
    for (int64_t head = 0; head < shape.num_heads; ++head)
      for (int64_t first = begin; first < end; first += step)
        blocks.push_back({first, std::min(first + step, end), head, &pieces});
  }
  parallel_tasks(static_cast<int64_t>(blocks.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_forward(args, blocks[static_cast<size_t>(i)]);
  });
}

// All that reads one key head of one group is one task.
void cpu_attention_part_backward(const AttentionPartBackwardArgs& args) {
  const AttentionPartShape& shape = args.shape;
  const int64_t heads = shape.num_heads / shape.num_kv_heads;
  std::vector<int64_t> borders{0};
  for (int64_t i = 1; i <= shape.num_pieces; ++i)
    if (i == shape.num_pieces || shape.pieces[i].group != shape.pieces[i - 1].group) borders.push_back(i);
  const auto num_groups = static_cast<int64_t>(borders.size()) - 1;
  parallel_tasks(num_groups * shape.num_kv_heads, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const auto group = static_cast<size_t>(task / shape.num_kv_heads);
      const int64_t first_head = task % shape.num_kv_heads * heads;
      for (int64_t i = borders[group]; i < borders[group + 1]; ++i) {
        const AttentionPiece& piece = shape.pieces[i];
        const int64_t step = queries_per_block(piece.num_keys());
        for (int64_t head = first_head; head < first_head + heads; ++head)
          for (int64_t first = piece.query_begin; first < piece.query_end; first += step) {
            const PartTask part = part_task(shape, piece, first, std::min(first + step, piece.query_end));
            if (part.num_keys > 0) run_backward(args, part, head);
          }
      }
    }
  });
}

}  // namespace moebius::kernels
#endif  // HWY_ONCE
