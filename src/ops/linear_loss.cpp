// Shapes: T tokens, D model width, V vocabulary, C tokens of one chunk.
#include "ops/linear_loss.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using kernels::GroupedGemmKind;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

constexpr int64_t kMaxLogitsBytes = int64_t{256} << 20;
// On the CPU chunks are as small as keeps the weight's traffic (read twice, its gradient read and written
// once per chunk) well below the arithmetic, so that the logits stay near the cache.
constexpr int64_t kCpuLogitsBytes = int64_t{16} << 20;
constexpr int64_t kCpuLeastRows = 512, kCpuMostRows = 1024;

void cpu_product(GroupedGemmKind kind, const at::Tensor& a, const at::Tensor& b, const at::Tensor& out,
                 int64_t num_rows, int64_t n, int64_t k, bool accumulate = false) {
  kernels::GroupedGemmArgs args{};
  args.kind = kind;
  args.a = a.const_data_ptr();
  args.b = b.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.num_groups = 1;
  args.num_rows = num_rows;
  args.n = n;
  args.k = k;
  args.index_divisor = 1;
  args.accumulate = accumulate;
  args.dtype = kernel_dtype(a);
  args.out_dtype = kernel_dtype(out);
  kernel_table(a.device()).grouped_gemm(args, current_stream(a.device()));
}

struct LossAndGrads {
  at::Tensor loss, token_loss;     // fp32: scalar, (T)
  at::Tensor grad_h, grad_weight;  // of the inputs' dtype; undefined when not wanted
};

// The cross-entropy of rows of which this process has some columns, by libtorch's operators; logits become
// their gradients where wanted. From each rank comes the logsumexp of its columns and the target's logit, or
// zero.
void split_cross_entropy(const at::Tensor& logits_CV, const at::Tensor& targets_C,
                         const VocabularySplit& split, double scale, const at::Tensor& token_loss_C,
                         bool want_grads) {
  const at::Tensor logits = logits_CV.to(at::kFloat);  // itself when it is
  const at::Tensor column_C = targets_C - split.begin;
  const at::Tensor here_C = column_C.ge(0).logical_and(column_C.lt(logits.size(1)));
  const at::Tensor index_C1 = at::where(here_C, column_C, 0).unsqueeze(1);
  const at::Tensor target_C = at::where(here_C, logits.gather(1, index_C1).squeeze(1), 0.0);
  const at::Tensor all_R2C = split.gather(at::stack({at::logsumexp(logits, {1}), target_C}));
  const at::Tensor log_sum_C = at::logsumexp(all_R2C.select(1, 0), {0});
  const at::Tensor log_p_C = all_R2C.select(1, 1).sum(0) - log_sum_C;
  const at::Tensor ignored_C = targets_C.eq(kernels::kIgnoredTarget);
  token_loss_C.copy_(log_p_C.neg().masked_fill_(ignored_C, 0));
  if (!want_grads) return;
  at::Tensor grad_CV = logits.sub_(log_sum_C.unsqueeze(1)).exp_().mul_(scale);
  // p - 1 without cancellation where p is near 1.
  const at::Tensor at_target_C = at::expm1(log_p_C).mul_(scale);
  grad_CV.scatter_(1, index_C1,
                   at::where(here_C, at_target_C, grad_CV.gather(1, index_C1).squeeze(1)).unsqueeze(1));
  grad_CV.masked_fill_(ignored_C.unsqueeze(1), 0);
  if (!logits_CV.is_same(logits)) logits_CV.copy_(grad_CV);
}

// The weight's gradient is summed over chunks in fp32 on the CPU; on CUDA in the weight's dtype, where the
// 256 MiB chunks are so few that their roundings stay below that of the result and a second V x D buffer is
// not needed.
LossAndGrads compute(const at::Tensor& h, const at::Tensor& weight, const at::Tensor& targets, double scale,
                     const VocabularySplit* split, bool want_h, bool want_weight) {
  const int64_t num_tokens = h.size(0), width = h.size(1), vocab = weight.size(0);
  const bool cpu = h.is_cpu();
  const auto f32 = h.options().dtype(at::kFloat);
  LossAndGrads out;
  out.token_loss = at::empty({num_tokens}, f32);
  if (want_h) out.grad_h = at::empty_like(h);
  if (num_tokens == 0) {
    out.loss = at::zeros({}, f32);
    if (want_weight) out.grad_weight = at::zeros_like(weight);
    return out;
  }
  at::Tensor grad_weight;
  if (want_weight) grad_weight = at::empty(weight.sizes(), cpu ? f32 : weight.options());
  const at::Tensor scale_tensor = at::full({}, scale, f32);
  // The same chunks on all ranks, whose vocabularies may differ by a row.
  const int64_t most = split == nullptr ? vocab : (split->vocab + split->num_ranks - 1) / split->num_ranks;
  const int64_t rows = loss_chunk_rows(num_tokens, most, h.element_size(), cpu);
  const at::Tensor buffer = at::empty({rows, vocab}, h.options());
  for (int64_t begin = 0; begin < num_tokens; begin += rows) {
    const int64_t count = std::min(rows, num_tokens - begin);
    const at::Tensor h_CD = h.narrow(0, begin, count);
    at::Tensor logits_CV = buffer.narrow(0, 0, count);
    if (cpu) {
      cpu_product(GroupedGemmKind::forward, h_CD, weight, logits_CV, count, vocab, width);
    } else {
      at::mm_out(logits_CV, h_CD, weight.t());
    }
    if (split != nullptr) {
      split_cross_entropy(logits_CV, targets.narrow(0, begin, count), *split, scale,
                          out.token_loss.narrow(0, begin, count), want_h || want_weight);
    } else {
      kernels::CrossEntropyArgs args{};
      args.logits = logits_CV.const_data_ptr();
      args.targets = targets.const_data_ptr<int64_t>() + begin;
      args.loss = out.token_loss.mutable_data_ptr<float>() + begin;
      args.grad_logits = want_h || want_weight ? logits_CV.mutable_data_ptr() : nullptr;
      args.scale = scale_tensor.const_data_ptr<float>();
      args.num_rows = count;
      args.vocab = vocab;
      args.dtype = kernel_dtype(h);
      kernel_table(h.device()).cross_entropy(args, current_stream(h.device()));
    }
    if (want_h) {
      at::Tensor grad_CD = out.grad_h.narrow(0, begin, count);
      if (cpu) {
        cpu_product(GroupedGemmKind::input_grad, logits_CV, weight, grad_CD, count, vocab, width);
      } else {
        at::mm_out(grad_CD, logits_CV, weight);
      }
    }
    if (want_weight) {
      if (cpu) {
        cpu_product(GroupedGemmKind::weight_grad, logits_CV, h_CD, grad_weight, count, vocab, width,
                    begin > 0);
      } else if (begin == 0) {
        at::mm_out(grad_weight, logits_CV.t(), h_CD);
      } else {
        grad_weight.addmm_(logits_CV.t(), h_CD);
      }
    }
  }
  out.loss = out.token_loss.sum().mul_(scale);
  if (want_weight) out.grad_weight = grad_weight.to(weight.scalar_type());
  return out;
}

// The gradients are ready; only the loss's own gradient is still to be multiplied in. On the CPU the usual 1
// is seen and nothing is done; on a device looking would be a synchronisation.
at::Tensor times(at::Tensor grad, const at::Tensor& upstream) {
  if (!grad.defined()) return grad;
  if (upstream.is_cpu() && *upstream.const_data_ptr<float>() == 1.0f) return grad;
  return grad.mul_(upstream);
}

class LinearCrossEntropy : public Function<LinearCrossEntropy> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& h, const at::Tensor& weight,
                               const at::Tensor& targets, double scale, const VocabularySplit* split) {
    LossAndGrads result =
        compute(h, weight, targets, scale, split, h.requires_grad(), weight.requires_grad());
    ctx->saved_data["grad_h"] = result.grad_h;
    ctx->saved_data["grad_weight"] = result.grad_weight;
    ctx->mark_non_differentiable({result.token_loss});
    ctx->set_materialize_grads(false);
    return {result.loss, result.token_loss};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(5);
    MOEBIUS_CHECK(!ctx->saved_data.empty(), "backward through linear_cross_entropy a second time");
    at::Tensor grad_h = times(ctx->saved_data["grad_h"].toTensor(), grads[0]);
    at::Tensor grad_weight = times(ctx->saved_data["grad_weight"].toTensor(), grads[0]);
    ctx->saved_data.clear();
    return {grad_h, grad_weight, {}, {}, {}};
  }
};

}  // namespace

int64_t loss_chunk_rows(int64_t num_tokens, int64_t vocab, int64_t element_bytes, bool on_cpu) {
  const int64_t row_bytes = vocab * element_bytes;
  int64_t rows = std::max<int64_t>(1, kMaxLogitsBytes / row_bytes);
  if (on_cpu) rows = std::min(rows, std::clamp(kCpuLogitsBytes / row_bytes, kCpuLeastRows, kCpuMostRows));
  // Whole multiples of a matrix kernel's tile, and the last chunk about as large as the others.
  const int64_t num_chunks = std::max<int64_t>(1, (num_tokens + rows - 1) / rows);
  const int64_t even = (num_tokens + num_chunks - 1) / num_chunks;
  return std::min(num_tokens, std::max<int64_t>(1, std::min(rows, (even + 127) / 128 * 128)));
}

at::Tensor linear_cross_entropy(const at::Tensor& h_TD, const at::Tensor& weight_VD,
                                const at::Tensor& targets_T, double scale, at::Tensor* token_loss_T,
                                const VocabularySplit* split) {
  MOEBIUS_CHECK(
      h_TD.dim() == 2 && weight_VD.dim() == 2 && h_TD.size(1) == weight_VD.size(1) && weight_VD.size(0) >= 1,
      "hidden ", h_TD.sizes(), " with output layer ", weight_VD.sizes());
  MOEBIUS_CHECK(h_TD.scalar_type() == weight_VD.scalar_type() && h_TD.device() == weight_VD.device(),
                "hidden is ", h_TD.scalar_type(), " on ", h_TD.device(), ", output layer ",
                weight_VD.scalar_type(), " on ", weight_VD.device());
  MOEBIUS_CHECK(targets_T.dim() == 1 && targets_T.size(0) == h_TD.size(0) &&
                    targets_T.scalar_type() == at::kLong && targets_T.device() == h_TD.device(),
                "targets are ", targets_T.sizes(), " ", targets_T.scalar_type(), " on ", targets_T.device(),
                " for hidden ", h_TD.sizes());
  const at::Tensor h = h_TD.contiguous(), weight = weight_VD.contiguous(), targets = targets_T.contiguous();
  MOEBIUS_CHECK(
      !h.is_cpu() || split == nullptr || targets.numel() == 0 || targets.max().item<int64_t>() < split->vocab,
      "a target is outside the vocabulary of ", split->vocab);
  variable_list out;
  if (at::GradMode::is_enabled() && (h.requires_grad() || weight.requires_grad())) {
    out = LinearCrossEntropy::apply(h, weight, targets, scale, split);
  } else {
    LossAndGrads result = compute(h, weight, targets, scale, split, false, false);
    out = {result.loss, result.token_loss};
  }
  if (token_loss_T != nullptr) *token_loss_T = out[1];
  return out[0];
}

}  // namespace moebius::ops
