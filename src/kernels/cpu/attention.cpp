// Matrix products by run_gemm_block(), the softmax between them here.
#include "kernels/api/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "kernels/cpu/gemm_block.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

// Rows are turned in place from fp32 into the dtype of the weights: what is written lies before what is read.
template <class T>
T* row_in_place(float* rows, int64_t r, int64_t stride) {
  return reinterpret_cast<T*>(rows + r * stride);
}

template <class T>
void zero_from(T* row, int64_t begin, int64_t end) {
  std::fill(row + begin, row + end, T{});
}

template <class T>
void softmax_rows(const ScoreRows& s) {
  const F32 d;
  const Vf scale = hn::Set(d, s.scale);
  for (int64_t r = 0; r < s.num_rows; ++r) {
    float* scores = s.scores + r * s.stride;
    const int64_t seen = s.first_seen + r;
    Vf max = hn::Set(d, -3.402823466e38f);
    for (int64_t i = 0; i < seen; i += lanes()) {
      const Part part(seen - i);
      max = hn::Max(max, part.keep(part.load(scores + i), -3.402823466e38f));
    }
    const float largest = max_lanes(max) * s.scale;
    const Vf shift = hn::Set(d, -largest);
    Vf sums = hn::Zero(d);
    for (int64_t i = 0; i < seen; i += lanes()) {
      const Part part(seen - i);
      const Vf e = exp(hn::MulAdd(part.load(scores + i), scale, shift));
      sums = hn::Add(sums, part.keep(e, 0.0f));
      part.store(e, scores + i);
    }
    const float sum = sum_lanes(sums);
    if (s.lse != nullptr) s.lse[r] = largest + std::log(sum);
    const Vf inverse = hn::Set(d, 1.0f / sum);
    T* weights = row_in_place<T>(s.scores, r, s.stride);
    for (int64_t i = 0; i < seen; i += lanes()) {
      const Part part(seen - i);
      part.store(hn::Mul(part.load(scores + i), inverse), weights + i);
    }
    zero_from(weights, seen, s.num_keys);
  }
}

template <class T>
float dot(const T* a, const T* b, int64_t n) {
  Vf sum = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    sum = hn::MulAdd(part.load(a + i), part.load(b + i), sum);
  }
  return sum_lanes(sum);
}

template <class T>
void gradient_rows(const ScoreRows& s, const GradientRows& g) {
  const F32 d;
  const Vf scale = hn::Set(d, s.scale);
  for (int64_t r = 0; r < s.num_rows; ++r) {
    const float* scores = s.scores + r * s.stride;
    const float* grads = g.grad_weights + r * s.stride;
    T* weights = row_in_place<T>(s.scores, r, s.stride);
    T* grad_scores = row_in_place<T>(g.grad_weights, r, s.stride);
    const int64_t seen = s.first_seen + r, row = r * g.row_stride;
    const Vf shift = hn::Set(d, -s.lse[r]);
    const Vf mean = hn::Set(
        d, dot(static_cast<const T*>(g.out) + row, static_cast<const T*>(g.grad_out) + row, g.head_dim));
    for (int64_t i = 0; i < seen; i += lanes()) {
      const Part part(seen - i);
      const Vf p = exp(hn::MulAdd(part.load(scores + i), scale, shift));
      const Vf ds = hn::Mul(hn::Mul(p, scale), hn::Sub(part.load(grads + i), mean));
      part.store(p, weights + i);
      part.store(ds, grad_scores + i);
    }
    zero_from(weights, seen, s.num_keys);
    zero_from(grad_scores, seen, s.num_keys);
  }
}

template <class T>
void store_sums(const float* sums, int64_t num_rows, int64_t width, T* out, int64_t stride) {
  for (int64_t r = 0; r < num_rows; ++r, sums += width, out += stride)
    for (int64_t i = 0; i < width; i += lanes()) {
      const Part part(width - i);
      part.store(part.load(sums + i), out + i);
    }
}

void SoftmaxRows(const ScoreRows& s, DType dtype) {
  dtype == DType::f32 ? softmax_rows<float>(s) : softmax_rows<Bf16>(s);
}

void GradientRowsOf(const ScoreRows& s, const GradientRows& g, DType dtype) {
  dtype == DType::f32 ? gradient_rows<float>(s, g) : gradient_rows<Bf16>(s, g);
}

void StoreSums(const float* sums, int64_t num_rows, int64_t width, void* out, int64_t stride, DType dtype) {
  dtype == DType::f32 ? store_sums(sums, num_rows, width, static_cast<float*>(out), stride)
                      : store_sums(sums, num_rows, width, static_cast<Bf16*>(out), stride);
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {
namespace {

HWY_EXPORT(SoftmaxRows);
HWY_EXPORT(GradientRowsOf);
HWY_EXPORT(StoreSums);

// Queries of a block: enough to make up for packing the keys, few enough that a block does not compute much
// above the diagonal and that its scores stay in the second-level cache.
constexpr int64_t kMostQueries = 64, kLeastQueries = 16, kScoresInCache = int64_t{1} << 16;

int64_t queries_per_block(int64_t length) {
  return std::clamp(kScoresInCache / std::max<int64_t>(length, 1), kLeastQueries, kMostQueries);
}

// Columns of the fused projection, and rows of a document in it.
class Layout {
 public:
  explicit Layout(const AttentionShape& shape) : shape_(shape) {}

  int64_t row() const { return (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_dim; }
  int64_t out_row() const { return shape_.num_heads * shape_.head_dim; }
  int64_t query(int64_t head) const { return head * shape_.head_dim; }
  int64_t key(int64_t kv_head) const { return (shape_.num_heads + kv_head) * shape_.head_dim; }
  int64_t value(int64_t kv_head) const { return key(kv_head + shape_.num_kv_heads); }
  int64_t group() const { return shape_.num_heads / shape_.num_kv_heads; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)); }

  const void* at(const void* base, int64_t element) const {
    return static_cast<const char*>(base) + element * size_of(shape_.dtype);
  }
  void* at(void* base, int64_t element) const {
    return static_cast<char*>(base) + element * size_of(shape_.dtype);
  }

 private:
  const AttentionShape& shape_;
};

struct Product {
  const void* a;
  int64_t a_stride;
  bool a_rows_are_k;
  const void* b;
  int64_t b_stride;
  bool b_rows_are_k;
  int64_t m, n, k;
};

void multiply(const Product& p, DType dtype, void* out, int64_t out_stride, DType out_dtype,
              bool accumulate = false) {
  run_gemm_block({.a = {p.a, p.a_stride, nullptr, 1},
                  .b = {p.b, p.b_stride, nullptr, 1},
                  .out = out,
                  .out_stride = out_stride,
                  .m = p.m,
                  .n = p.n,
                  .k = p.k,
                  .a_rows_are_k = p.a_rows_are_k,
                  .b_rows_are_k = p.b_rows_are_k,
                  .accumulate = accumulate,
                  .dtype = dtype,
                  .out_dtype = out_dtype});
}

// Some queries of a document and one head, and the keys up to the last of them.
struct Task {
  int64_t document_begin, query_begin, query_end, head;

  int64_t num_queries() const { return query_end - query_begin; }
  int64_t num_keys() const { return query_end - document_begin; }
};

std::vector<Task> forward_tasks(const AttentionShape& shape) {
  std::vector<Task> tasks;
  for (int64_t i = 0; i < shape.num_documents; ++i) {
    const int64_t begin = shape.cu_seqlens[i], end = shape.cu_seqlens[i + 1];
    const int64_t step = queries_per_block(end - begin);
    for (int64_t head = 0; head < shape.num_heads; ++head)
      for (int64_t first = begin; first < end; first += step)
        tasks.push_back({begin, first, std::min(first + step, end), head});
  }
  return tasks;
}

// Elements of the dtype in a row of `floats` floats.
int64_t elements_of(int64_t floats, DType dtype) {
  return floats * size_of(DType::f32) / size_of(dtype);
}

void run_forward(const AttentionForwardArgs& args, const Task& task) {
  thread_local Scratch scratch;
  const AttentionShape& shape = args.shape;
  const Layout at(shape);
  const int64_t m = task.num_queries(), n = task.num_keys(), d = shape.head_dim;
  const int64_t kv_head = task.head / at.group(), keys = task.document_begin * at.row();
  float* scores = scratch.floats(m * n);
  multiply({at.at(args.qkv, task.query_begin * at.row() + at.query(task.head)), at.row(), false,
            at.at(args.qkv, keys + at.key(kv_head)), at.row(), false, m, n, d},
           shape.dtype, scores, n, DType::f32);
  float* lse = args.lse == nullptr ? nullptr : args.lse + task.head * shape.num_tokens + task.query_begin;
  HWY_DYNAMIC_DISPATCH(SoftmaxRows)
  ({scores, n, m, n, task.query_begin - task.document_begin + 1, at.scale(), lse}, shape.dtype);
  multiply({scores, elements_of(n, shape.dtype), false, at.at(args.qkv, keys + at.value(kv_head)), at.row(),
            true, m, d, n},
           shape.dtype, at.at(args.out, task.query_begin * at.out_row() + at.query(task.head)), at.out_row(),
           shape.dtype);
}

// The gradients of one block's queries, and what they add to those of the keys and values before them.
void run_backward(const AttentionBackwardArgs& args, const Task& task, float* grad_key, float* grad_value) {
  thread_local Scratch scores_scratch, grads_scratch;
  const AttentionShape& shape = args.shape;
  const DType dtype = shape.dtype;
  const Layout at(shape);
  const int64_t m = task.num_queries(), n = task.num_keys(), d = shape.head_dim, row = at.row();
  const int64_t kv_head = task.head / at.group(), keys = task.document_begin * row;
  const int64_t queries = task.query_begin * row + at.query(task.head);
  const int64_t outs = task.query_begin * at.out_row() + at.query(task.head);
  const void *q = at.at(args.qkv, queries), *k = at.at(args.qkv, keys + at.key(kv_head)),
             *v = at.at(args.qkv, keys + at.value(kv_head)), *grad_out = at.at(args.grad_out, outs);
  float* scores = scores_scratch.floats(m * n);
  float* grads = grads_scratch.floats(m * n);
  multiply({q, row, false, k, row, false, m, n, d}, dtype, scores, n, DType::f32);
  multiply({grad_out, at.out_row(), false, v, row, false, m, n, d}, dtype, grads, n, DType::f32);
  float* lse = const_cast<float*>(args.lse) + task.head * shape.num_tokens + task.query_begin;
  HWY_DYNAMIC_DISPATCH(GradientRowsOf)
  ({scores, n, m, n, task.query_begin - task.document_begin + 1, at.scale(), lse},
   {grads, at.at(args.out, outs), grad_out, at.out_row(), d}, dtype);
  const int64_t stride = elements_of(n, dtype);
  multiply({scores, stride, true, grad_out, at.out_row(), true, n, d, m}, dtype, grad_value, d, DType::f32,
           true);
  multiply({grads, stride, true, q, row, true, n, d, m}, dtype, grad_key, d, DType::f32, true);
  multiply({grads, stride, false, k, row, true, m, d, n}, dtype, at.at(args.grad_qkv, queries), row, dtype);
}

// All that reads one key head of one document, so that the sums of its gradients have a fixed order.
void run_backward_of_keys(const AttentionBackwardArgs& args, int64_t document, int64_t kv_head) {
  thread_local Scratch scratch;
  const AttentionShape& shape = args.shape;
  const Layout at(shape);
  const int64_t begin = shape.cu_seqlens[document], end = shape.cu_seqlens[document + 1];
  const int64_t size = (end - begin) * shape.head_dim, step = queries_per_block(end - begin);
  float* grad_key = scratch.floats(2 * size);
  float* grad_value = grad_key + size;
  std::fill(grad_key, grad_key + 2 * size, 0.0f);
  for (int64_t head = kv_head * at.group(); head < (kv_head + 1) * at.group(); ++head)
    for (int64_t first = begin; first < end; first += step)
      run_backward(args, {begin, first, std::min(first + step, end), head}, grad_key, grad_value);
  const auto store = [&](const float* sums, int64_t column) {
    HWY_DYNAMIC_DISPATCH(StoreSums)
    (sums, end - begin, shape.head_dim, at.at(args.grad_qkv, begin * at.row() + column), at.row(),
     shape.dtype);
  };
  store(grad_key, at.key(kv_head));
  store(grad_value, at.value(kv_head));
}

}  // namespace

void attention_forward(const AttentionForwardArgs& args, Stream) {
  const std::vector<Task> tasks = forward_tasks(args.shape);
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_forward(args, tasks[static_cast<size_t>(i)]);
  });
}

void attention_backward(const AttentionBackwardArgs& args, Stream) {
  const int64_t num_kv_heads = args.shape.num_kv_heads;
  parallel_tasks(args.shape.num_documents * num_kv_heads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_backward_of_keys(args, i / num_kv_heads, i % num_kv_heads);
  });
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
