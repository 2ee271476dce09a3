// Matrix products by run_gemm_block(), the softmax between them here.
#include "kernels/api/attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/parallel.h"
#include "kernels/cpu/attention_products.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/attention_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

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

// Columns of the fused projection, and rows of a document in it.
class Layout {
 public:
  explicit Layout(const AttentionShape& shape) : shape_(shape) {}

  int64_t row() const { return value(shape_.num_kv_heads); }
  int64_t out_row() const { return shape_.num_heads * shape_.value_dim; }
  int64_t query(int64_t head) const { return head * shape_.head_dim; }
  int64_t out(int64_t head) const { return head * shape_.value_dim; }
  int64_t key(int64_t kv_head) const { return (shape_.num_heads + kv_head) * shape_.head_dim; }
  int64_t value(int64_t kv_head) const { return key(shape_.num_kv_heads) + kv_head * shape_.value_dim; }
  int64_t group() const { return shape_.num_heads / shape_.num_kv_heads; }

  const void* at(const void* base, int64_t element) const {
    return static_cast<const char*>(base) + element * size_of(shape_.dtype);
  }
  void* at(void* base, int64_t element) const {
    return static_cast<char*>(base) + element * size_of(shape_.dtype);
  }

 private:
  const AttentionShape& shape_;
};

// Some queries of a document and one head, and the keys that one of them sees.
struct Task {
  int64_t key_begin, query_begin, query_end, head;

  int64_t num_queries() const { return query_end - query_begin; }
  int64_t num_keys() const { return query_end - key_begin; }
  int64_t first_seen() const { return query_begin - key_begin + 1; }
};

Task task_of(const AttentionShape& shape, int64_t document_begin, int64_t query_begin, int64_t query_end,
             int64_t head) {
  const int64_t key_begin =
      shape.window > 0 ? std::max(document_begin, query_begin - shape.window + 1) : document_begin;
  return {key_begin, query_begin, query_end, head};
}

int64_t queries_at_once(const AttentionShape& shape, int64_t length) {
  return queries_per_block(shape.window > 0 ? std::min(length, shape.window + kLeastQueries) : length);
}

std::vector<Task> forward_tasks(const AttentionShape& shape) {
  std::vector<Task> tasks;
  for (int64_t i = 0; i < shape.num_documents; ++i) {
    const int64_t begin = shape.cu_seqlens[i], end = shape.cu_seqlens[i + 1];
    const int64_t step = queries_at_once(shape, end - begin);
    for (int64_t head = 0; head < shape.num_heads; ++head)
      for (int64_t first = begin; first < end; first += step)
        tasks.push_back(task_of(shape, begin, first, std::min(first + step, end), head));
  }
  return tasks;
}

const float* sink_of(const float* sinks, int64_t head) {
  return sinks == nullptr ? nullptr : sinks + head;
}

void run_forward(const AttentionForwardArgs& args, const Task& task) {
  thread_local Scratch scratch;
  const AttentionShape& shape = args.shape;
  const Layout at(shape);
  const int64_t m = task.num_queries(), n = task.num_keys(), d = shape.head_dim;
  const int64_t kv_head = task.head / at.group(), keys = task.key_begin * at.row();
  float* scores = scratch.floats(m * n);
  multiply({at.at(args.qkv, task.query_begin * at.row() + at.query(task.head)), at.row(), false,
            at.at(args.qkv, keys + at.key(kv_head)), at.row(), false, m, n, d},
           shape.dtype, scores, n, DType::f32);
  float* lse = args.lse == nullptr ? nullptr : args.lse + task.head * shape.num_tokens + task.query_begin;
  HWY_DYNAMIC_DISPATCH(SoftmaxRows)
  ({scores, n, m, n, task.first_seen(), shape.scale, lse, shape.window, sink_of(args.sinks, task.head)},
   shape.dtype);
  multiply({scores, elements_of(n, shape.dtype), false, at.at(args.qkv, keys + at.value(kv_head)), at.row(),
            true, m, shape.value_dim, n},
           shape.dtype, at.at(args.out, task.query_begin * at.out_row() + at.out(task.head)), at.out_row(),
           shape.dtype);
}

// The gradients of one block's queries, and what they add to those of the keys and values that they see and
// of the head's sink.
void run_backward(const AttentionBackwardArgs& args, const Task& task, float* grad_key, float* grad_value,
                  float* grad_sink) {
  thread_local Scratch scores_scratch, grads_scratch;
  const AttentionShape& shape = args.shape;
  const DType dtype = shape.dtype;
  const Layout at(shape);
  const int64_t m = task.num_queries(), n = task.num_keys(), d = shape.head_dim, row = at.row();
  const int64_t dv = shape.value_dim, kv_head = task.head / at.group(), keys = task.key_begin * row;
  const int64_t queries = task.query_begin * row + at.query(task.head);
  const int64_t outs = task.query_begin * at.out_row() + at.out(task.head);
  const void *q = at.at(args.qkv, queries), *k = at.at(args.qkv, keys + at.key(kv_head)),
             *v = at.at(args.qkv, keys + at.value(kv_head)), *grad_out = at.at(args.grad_out, outs);
  float* scores = scores_scratch.floats(m * n);
  float* grads = grads_scratch.floats(m * n);
  multiply({q, row, false, k, row, false, m, n, d}, dtype, scores, n, DType::f32);
  multiply({grad_out, at.out_row(), false, v, row, false, m, n, dv}, dtype, grads, n, DType::f32);
  float* lse = const_cast<float*>(args.lse) + task.head * shape.num_tokens + task.query_begin;
  HWY_DYNAMIC_DISPATCH(GradientRowsOf)
  ({scores, n, m, n, task.first_seen(), shape.scale, lse, shape.window, sink_of(args.sinks, task.head)},
   {grads, at.at(args.out, outs), grad_out, at.out_row(), dv, grad_sink}, dtype);
  const int64_t stride = elements_of(n, dtype);
  multiply({scores, stride, true, grad_out, at.out_row(), true, n, dv, m}, dtype, grad_value, dv, DType::f32,
           true);
  multiply({grads, stride, true, q, row, true, n, d, m}, dtype, grad_key, d, DType::f32, true);
  multiply({grads, stride, false, k, row, true, m, d, n}, dtype, at.at(args.grad_qkv, queries), row, dtype);
}

// All that reads one key head of one document, so that the sums of its gradients have a fixed order.
// grad_sinks: (H) of this document, added to, or null.
void run_backward_of_keys(const AttentionBackwardArgs& args, int64_t document, int64_t kv_head,
                          float* grad_sinks) {
  thread_local Scratch scratch;
  const AttentionShape& shape = args.shape;
  const Layout at(shape);
  const int64_t begin = shape.cu_seqlens[document], end = shape.cu_seqlens[document + 1];
  const int64_t d = shape.head_dim, dv = shape.value_dim, step = queries_at_once(shape, end - begin);
  const int64_t size = (end - begin) * (d + dv);
  float* grad_key = scratch.floats(size);
  float* grad_value = grad_key + (end - begin) * d;
  std::fill(grad_key, grad_key + size, 0.0f);
  for (int64_t head = kv_head * at.group(); head < (kv_head + 1) * at.group(); ++head)
    for (int64_t first = begin; first < end; first += step) {
      const Task task = task_of(shape, begin, first, std::min(first + step, end), head);
      const int64_t before = task.key_begin - begin;
      run_backward(args, task, grad_key + before * d, grad_value + before * dv,
                   grad_sinks == nullptr ? nullptr : grad_sinks + head);
    }
  const auto store = [&](const float* sums, int64_t width, int64_t column) {
    HWY_DYNAMIC_DISPATCH(StoreSums)
    (sums, end - begin, width, at.at(args.grad_qkv, begin * at.row() + column), at.row(), shape.dtype);
  };
  store(grad_key, d, at.key(kv_head));
  store(grad_value, dv, at.value(kv_head));
}

}  // namespace

void attention_forward(const AttentionForwardArgs& args, Stream) {
  const std::vector<Task> tasks = forward_tasks(args.shape);
  parallel_tasks(static_cast<int64_t>(tasks.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) run_forward(args, tasks[static_cast<size_t>(i)]);
  });
}

void attention_backward(const AttentionBackwardArgs& args, Stream) {
  const int64_t num_kv_heads = args.shape.num_kv_heads, num_heads = args.shape.num_heads;
  std::vector<float> grad_sinks;  // (documents, H)
  if (args.sinks != nullptr) grad_sinks.resize(static_cast<size_t>(args.shape.num_documents * num_heads));
  parallel_tasks(args.shape.num_documents * num_kv_heads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t document = i / num_kv_heads;
      run_backward_of_keys(args, document, i % num_kv_heads,
                           grad_sinks.empty() ? nullptr : grad_sinks.data() + document * num_heads);
    }
  });
  if (args.sinks == nullptr) return;
  for (int64_t head = 0; head < num_heads; ++head) {
    double sum = 0;
    for (int64_t document = 0; document < args.shape.num_documents; ++document)
      sum += grad_sinks[static_cast<size_t>(document * num_heads + head)];
    args.grad_sinks[head] = static_cast<float>(sum);
  }
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
