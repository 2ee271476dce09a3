#include "ops/attention_part.h"

#include <ATen/ATen.h>

#include <limits>

#include "base/check.h"
#include "ops/attention_part_flash.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

// Columns of the fused projection, and of keys and values apart from it.
int64_t query_width(const AttentionShape& shape) {
  return shape.num_heads * shape.head_dim;
}
int64_t key_width(const AttentionShape& shape) {
  return shape.num_kv_heads * shape.head_dim;
}
int64_t part_width(const AttentionShape& shape) {
  return key_width(shape) + shape.num_kv_heads * shape.value_width();
}

kernels::AttentionPartShape part_shape(const at::Tensor& qkv, const at::Tensor& kv,
                                       const AttentionPieces& pieces, const AttentionShape& shape) {
  return {pieces.data(),
          static_cast<int64_t>(pieces.size()),
          qkv.size(0),
          qkv.size(1),
          kv.size(1),
          shape.num_heads,
          shape.num_kv_heads,
          shape.head_dim,
          shape.value_width(),
          shape.window,
          static_cast<float>(shape.score_scale()),
          kernel_dtype(qkv)};
}

const void* values_of(const at::Tensor& kv, const AttentionShape& shape) {
  return static_cast<const char*>(kv.const_data_ptr()) +
         key_width(shape) * static_cast<int64_t>(kv.element_size());
}

void check_part(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                const AttentionShape& shape) {
  MOEBIUS_CHECK(qkv.dim() == 2 && qkv.size(1) == shape.row_width() && qkv.is_contiguous(), "attention on ",
                qkv.sizes(), " with rows of ", shape.row_width());
  MOEBIUS_CHECK(kv.dim() == 2 && kv.size(1) == part_width(shape) && kv.is_contiguous(), "keys ", kv.sizes(),
                " with rows of ", part_width(shape));
  MOEBIUS_CHECK(kv.scalar_type() == qkv.scalar_type() && kv.device() == qkv.device(), "keys on ",
                kv.device());
  for (const kernels::AttentionPiece& piece : pieces)
    MOEBIUS_CHECK(piece.query_begin >= 0 && piece.query_begin <= piece.query_end &&
                      piece.query_end <= qkv.size(0) && piece.key_begin >= 0 &&
                      piece.key_begin <= piece.key_end && piece.key_end <= kv.size(0),
                  "queries ", piece.query_begin, " to ", piece.query_end, " of ", qkv.size(0), ", keys ",
                  piece.key_begin, " to ", piece.key_end, " of ", kv.size(0));
}

}  // namespace

AttentionSums begin_attention(const at::Tensor& qkv_TC, const AttentionShape& shape,
                              const at::Tensor& sinks_H) {
  const at::TensorOptions fp32 = qkv_TC.options().dtype(at::kFloat).requires_grad(false);
  AttentionSums sums;
  sums.out_TC = at::zeros({qkv_TC.size(0), shape.out_width()}, fp32);
  sums.lse_HT = at::empty({shape.num_heads, qkv_TC.size(0)}, fp32);
  if (sinks_H.defined()) {
    // A logit that leads to nothing, seen before the first key.
    sums.lse_HT.copy_(sinks_H.detach().to(at::kFloat).unsqueeze(1).expand_as(sums.lse_HT));
  } else {
    sums.lse_HT.fill_(-std::numeric_limits<float>::infinity());
  }
  return sums;
}

at::Tensor keys_and_values(const at::Tensor& qkv_TC, const AttentionShape& shape) {
  return qkv_TC.detach().narrow(1, query_width(shape), part_width(shape)).contiguous();
}

void attend_to_part(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                    const AttentionShape& shape, AttentionSums& sums) {
  check_part(qkv, kv, pieces, shape);
  if (pieces.empty()) return;
  if (!qkv.is_cpu()) {
    if (flash::takes(qkv, pieces, shape)) return flash::attend_to_part(qkv, kv, pieces, shape, sums);
    return blocks::attend_to_part(qkv, kv, pieces, shape, sums);
  }
  kernels::AttentionPartForwardArgs args{};
  args.shape = part_shape(qkv, kv, pieces, shape);
  args.q = qkv.const_data_ptr();
  args.k = kv.const_data_ptr();
  args.v = values_of(kv, shape);
  args.out = sums.out_TC.mutable_data_ptr<float>();
  args.lse = sums.lse_HT.mutable_data_ptr<float>();
  kernels::cpu_attention_part_forward(args);
}

void attend_to_part_backward(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                             const AttentionShape& shape, const at::Tensor& out, const AttentionSums& sums,
                             const at::Tensor& grad_out, const at::Tensor& grad_q,
                             const at::Tensor& grad_kv) {
  check_part(qkv, kv, pieces, shape);
  MOEBIUS_CHECK(out.scalar_type() == qkv.scalar_type() && grad_out.scalar_type() == qkv.scalar_type() &&
                    out.is_contiguous() && grad_out.is_contiguous(),
                "results and their gradients are ", out.scalar_type(), " and ", grad_out.scalar_type());
  if (pieces.empty()) return;
  if (!qkv.is_cpu()) {
    if (flash::takes(qkv, pieces, shape))
      return flash::attend_to_part_backward(qkv, kv, pieces, shape, out, sums, grad_out, grad_q, grad_kv);
    return blocks::attend_to_part_backward(qkv, kv, pieces, shape, out, sums, grad_out, grad_q, grad_kv);
  }
  kernels::AttentionPartBackwardArgs args{};
  args.shape = part_shape(qkv, kv, pieces, shape);
  args.q = qkv.const_data_ptr();
  args.k = kv.const_data_ptr();
  args.v = values_of(kv, shape);
  args.out = out.const_data_ptr();
  args.lse = sums.lse_HT.const_data_ptr<float>();
  args.grad_out = grad_out.const_data_ptr();
  args.grad_q = grad_q.mutable_data_ptr<float>();
  args.grad_k = grad_kv.mutable_data_ptr<float>();
  args.grad_v = args.grad_k + key_width(shape);
  args.grad_key_stride = grad_kv.size(1);
  kernels::cpu_attention_part_backward(args);
}

at::Tensor sinks_gradient(const at::Tensor& sinks_H, const at::Tensor& out_TC, const at::Tensor& lse_HT,
                          const at::Tensor& grad_out_TC) {
  const int64_t heads = sinks_H.size(0);
  const at::Tensor mean_TH =
      (out_TC.to(at::kFloat) * grad_out_TC.to(at::kFloat)).unflatten(1, {heads, -1}).sum(2);
  const at::Tensor weight_HT = (sinks_H.to(at::kFloat).unsqueeze(1) - lse_HT).exp_();
  return weight_HT.mul_(mean_TH.t()).sum(1).neg_();
}

}  // namespace moebius::ops
