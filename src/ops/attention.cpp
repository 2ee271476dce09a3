// Shapes: T tokens, B documents of S tokens each, H query heads, Hk key and value heads, d elements of a
// query or key head, dv of a value head. Everything works on strided views of the fused projection; the
// gradients of queries, keys and values are written into the columns of one (T, C) tensor.
#include "ops/attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <atomic>
#include <cmath>

#include "base/check.h"
#include "base/concat.h"
#include "base/log.h"
#include "kernels/api/attention.h"
#include "ops/attention_blocks.h"
#include "ops/attention_parts.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

// A gradient (B, heads, S, d) into its columns (T, heads, d). Query heads that share a key head add up.
void store(const at::Tensor& grad, const at::Tensor& columns, int64_t length) {
  const at::Tensor target = by_document(columns, length);
  if (grad.size(1) == target.size(1)) {
    target.copy_(grad);
  } else {
    target.copy_(grad.unflatten(1, {target.size(1), grad.size(1) / target.size(1)}).sum(2));
  }
}

kernels::AttentionShape kernel_shape(const at::Tensor& qkv, const at::Tensor& cu_seqlens,
                                     const AttentionShape& shape) {
  return {cu_seqlens.const_data_ptr<int32_t>(),
          cu_seqlens.size(0) - 1,
          qkv.size(0),
          shape.num_heads,
          shape.num_kv_heads,
          shape.head_dim,
          kernel_dtype(qkv),
          shape.value_width(),
          shape.window,
          static_cast<float>(shape.score_scale())};
}

// What the backward pass needs to know of the shape.
std::vector<int64_t> sizes_of(const AttentionShape& shape) {
  return {shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.value_dim, shape.window};
}
AttentionShape shape_of(AutogradContext* ctx) {
  const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], ctx->saved_data["scale"].toDouble()};
}
void keep_shape(AutogradContext* ctx, const AttentionShape& shape) {
  ctx->saved_data["sizes"] = sizes_of(shape);
  ctx->saved_data["scale"] = shape.scale;
}

std::optional<double> scale_or_none(const AttentionShape& shape) {
  return shape.scale > 0 ? std::optional<double>(shape.scale) : std::nullopt;
}

// The project's own kernel (kernels/api/attention.h). cu_seqlens lies on the CPU; sinks are fp32.
class CpuAttention : public Function<CpuAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv,
                            const std::optional<at::Tensor>& sinks, const at::Tensor& cu_seqlens,
                            const AttentionShape& shape) {
    at::Tensor out = at::empty({qkv.size(0), shape.out_width()}, qkv.options());
    at::Tensor lse = at::empty({shape.num_heads, qkv.size(0)}, qkv.options().dtype(at::kFloat));
    kernels::AttentionForwardArgs args{};
    args.shape = kernel_shape(qkv, cu_seqlens, shape);
    args.qkv = qkv.const_data_ptr();
    args.out = out.mutable_data_ptr();
    args.lse = lse.mutable_data_ptr<float>();
    args.sinks = sinks ? sinks->const_data_ptr<float>() : nullptr;
    kernel_table(qkv.device()).attention_forward(args, current_stream(qkv.device()));
    ctx->save_for_backward({qkv, out, lse, cu_seqlens, sinks.value_or(at::Tensor())});
    ctx->set_materialize_grads(false);
    keep_shape(ctx, shape);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(4);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &qkv = saved[0], &sinks = saved[4];
    at::Tensor grad_sinks = sinks.defined() ? at::empty_like(sinks) : at::Tensor();
    const at::Tensor grad_out = grads[0].contiguous();
    at::Tensor grad_qkv = at::empty_like(qkv);
    kernels::AttentionBackwardArgs args{};
    args.shape = kernel_shape(qkv, saved[3], shape_of(ctx));
    args.qkv = qkv.const_data_ptr();
    args.out = saved[1].const_data_ptr();
    args.lse = saved[2].const_data_ptr<float>();
    args.grad_out = grad_out.const_data_ptr();
    args.grad_qkv = grad_qkv.mutable_data_ptr();
    if (sinks.defined()) {
      args.sinks = sinks.const_data_ptr<float>();
      args.grad_sinks = grad_sinks.mutable_data_ptr<float>();
    }
    kernel_table(qkv.device()).attention_backward(args, current_stream(qkv.device()));
    return {grad_qkv, grad_sinks, {}, {}};
  }
};

// Documents of one length through cuDNN, which reads and writes strided views and shares key heads itself.
class CudnnAttention : public Function<CudnnAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv, int64_t length,
                            const AttentionShape& shape) {
    const AttentionParts in = by_document(split_heads(qkv, shape), length);
    auto [out, lse, cum_q, cum_k, max_q, max_k, seed, offset, mask] =
        at::_scaled_dot_product_cudnn_attention(in.q, in.k, in.v, {}, /*compute_log_sumexp=*/true, 0.0, true,
                                                /*return_debug_mask=*/false, scale_or_none(shape));
    out = out.transpose(1, 2).reshape({qkv.size(0), shape.out_width()});
    ctx->save_for_backward({qkv, out, lse, seed, offset, cum_q, cum_k});
    ctx->set_materialize_grads(false);
    keep_shape(ctx, shape);
    ctx->saved_data["lengths"] = std::vector<int64_t>{length, max_q.expect_int(), max_k.expect_int()};
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(3);
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> lengths = ctx->saved_data["lengths"].toIntVector();
    const AttentionShape shape = shape_of(ctx);
    const int64_t length = lengths[0];
    const at::Tensor& qkv = saved[0];
    const std::vector<int64_t> heads{qkv.size(0), shape.num_heads, shape.value_width()};
    const AttentionParts in = by_document(split_heads(qkv, shape), length);
    const auto [grad_q, grad_k, grad_v] = at::_scaled_dot_product_cudnn_attention_backward(
        by_document(grads[0].contiguous().view(heads), length), in.q, in.k, in.v,
        by_document(saved[1].view(heads), length), saved[2], saved[3], saved[4], {}, saved[5], saved[6],
        lengths[1], lengths[2], 0.0, true, scale_or_none(shape));
    at::Tensor grad_qkv = at::empty_like(qkv);
    const AttentionParts columns = split_heads(grad_qkv, shape);
    store(grad_q, columns.q, length);
    store(grad_k, columns.k, length);
    store(grad_v, columns.v, length);
    return {grad_qkv, {}, {}};
  }
};

// Packed documents of different lengths through libtorch's flash kernels. (Dao 2023, "FlashAttention-2")
class FlashAttention : public Function<FlashAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv, const at::Tensor& cu_seqlens,
                            int64_t max_length, const AttentionShape& shape) {
    const AttentionParts in = split_heads(qkv, shape);
    auto [out, lse, rng_state, unused, mask] =
        at::_flash_attention_forward(in.q, in.k, in.v, cu_seqlens, cu_seqlens, max_length, max_length, 0.0,
                                     /*is_causal=*/true, /*return_debug_mask=*/false, scale_or_none(shape));
    out = out.reshape({qkv.size(0), shape.out_width()});
    ctx->save_for_backward({qkv, out, lse, rng_state, unused, cu_seqlens});
    ctx->set_materialize_grads(false);
    keep_shape(ctx, shape);
    ctx->saved_data["max_length"] = max_length;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(4);
    const variable_list saved = ctx->get_saved_variables();
    const int64_t max_length = ctx->saved_data["max_length"].toInt();
    const AttentionShape shape = shape_of(ctx);
    const at::Tensor& qkv = saved[0];
    const std::vector<int64_t> heads{qkv.size(0), shape.num_heads, shape.head_dim};
    const AttentionParts in = split_heads(qkv, shape);
    const auto [grad_q, grad_k, grad_v] = at::_flash_attention_backward(
        grads[0].contiguous().view(heads), in.q, in.k, in.v, saved[1].view(heads), saved[2], saved[5],
        saved[5], max_length, max_length, 0.0, true, saved[3], saved[4], scale_or_none(shape));
    at::Tensor grad_qkv = at::empty_like(qkv);
    const AttentionParts columns = split_heads(grad_qkv, shape);
    columns.q.copy_(grad_q);
    columns.k.copy_(grad_k);
    columns.v.copy_(grad_v);
    return {grad_qkv, {}, {}, {}};
  }
};

// Whatever libtorch has for shapes and dtypes that no fused kernel takes, with libtorch's autograd.
at::Tensor composite_attention(const at::Tensor& qkv, const std::vector<DocumentRun>& runs,
                               const AttentionShape& shape) {
  std::vector<at::Tensor> outs;
  const AttentionParts all = split_heads(qkv, shape);
  for (const DocumentRun& run : runs) {
    const AttentionParts in = by_document(rows_of(all, run), run.length);
    const at::Tensor out =
        at::scaled_dot_product_attention(in.q, in.k, in.v, {}, 0.0, /*is_causal=*/true, scale_or_none(shape),
                                         /*enable_gqa=*/shape.num_heads != shape.num_kv_heads);
    outs.push_back(out.transpose(1, 2).reshape({-1, shape.out_width()}));
  }
  return outs.size() == 1 ? outs[0] : at::cat(outs);
}

// libtorch's choice for these inputs is cuDNN (the value of sdp::SDPBackend::cudnn_attention).
bool cudnn_takes(const at::Tensor& qkv, int64_t length, const AttentionShape& shape) {
  constexpr int64_t kCudnnBackend = 3;
  const AttentionParts in = by_document(split_heads(qkv, shape), length);
  return at::_fused_sdp_choice(in.q, in.k, in.v, {}, 0.0, /*is_causal=*/true, scale_or_none(shape),
                               /*enable_gqa=*/shape.num_heads != shape.num_kv_heads) == kCudnnBackend;
}

// Said once: without a fused kernel the scores exist whole, and a step is several times slower.
void say_that_attention_is_slow(const at::Tensor& qkv, int64_t length, const AttentionShape& shape) {
  static std::atomic_flag said;
  if (qkv.scalar_type() != at::kBFloat16 || said.test_and_set()) return;
  log_warn("attention runs without a fused kernel: ", shape.num_heads, "/", shape.num_kv_heads, " heads of ",
           shape.head_dim,
           shape.value_width() == shape.head_dim ? "" : concat(" (values ", shape.value_width(), ")"),
           ", documents of ", length > 0 ? concat(length, " tokens") : std::string("different lengths"),
           "; the fused ones want model.head_dim to be a multiple of 8, of at most 128 with documents of one "
           "length and of at most 256 otherwise");
}

bool flash_takes(const at::Tensor& qkv, const AttentionShape& shape) {
  return qkv.scalar_type() == at::kBFloat16 && shape.head_dim % 8 == 0 && shape.head_dim <= 256 &&
         shape.value_width() == shape.head_dim;
}

void check_arguments(const at::Tensor& qkv, const Segments& segments, const AttentionShape& shape,
                     const at::Tensor& sinks) {
  MOEBIUS_CHECK(shape.num_kv_heads >= 1 && shape.head_dim >= 1 && shape.num_heads % shape.num_kv_heads == 0,
                "attention with ", shape.num_heads, " heads of ", shape.head_dim, " and ", shape.num_kv_heads,
                " key heads");
  MOEBIUS_CHECK(qkv.dim() == 2 && qkv.size(1) == shape.row_width(), "attention on ", qkv.sizes(),
                " with rows of ", shape.row_width());
  MOEBIUS_CHECK(shape.window >= 0 && shape.scale >= 0, "window ", shape.window, ", scale ", shape.scale);
  MOEBIUS_CHECK(!sinks.defined() ||
                    (sinks.dim() == 1 && sinks.size(0) == shape.num_heads && sinks.device() == qkv.device()),
                "sinks are ", sinks.sizes(), " for ", shape.num_heads, " heads");
  const auto& cu = segments.cu_seqlens;
  MOEBIUS_CHECK(!cu.empty() && cu.front() == 0 && cu.back() == qkv.size(0), "documents end at ",
                cu.empty() ? 0 : cu.back(), " of ", qkv.size(0), " tokens");
  for (size_t i = 0; i + 1 < cu.size(); ++i) MOEBIUS_CHECK_LE(cu[i], cu[i + 1], "border ", i);
}

}  // namespace

int64_t Segments::uniform_length() const {
  if (cu_seqlens.size() < 2) return 0;
  const int64_t length = cu_seqlens[1] - cu_seqlens[0];
  for (size_t i = 1; i + 1 < cu_seqlens.size(); ++i)
    if (cu_seqlens[i + 1] - cu_seqlens[i] != length) return 0;
  return length;
}

double AttentionShape::score_scale() const {
  return scale > 0 ? scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
}

at::Tensor attention(const at::Tensor& qkv_TC, const Segments& segments, const AttentionShape& given,
                     const at::Tensor& sinks_H) {
  check_arguments(qkv_TC, segments, given, sinks_H);
  const at::Tensor qkv = qkv_TC.contiguous();
  AttentionShape shape = given;
  if (shape.window >= segments.max_length) shape.window = 0;  // hides nothing
  if (qkv.size(0) == 0) return qkv.narrow(1, 0, 1).expand({0, shape.out_width()});
  if (qkv.is_cpu()) {
    std::optional<at::Tensor> sinks;  // an operator of autograd takes no undefined tensor
    if (sinks_H.defined()) sinks = sinks_H.to(at::kFloat).contiguous();
    return CpuAttention::apply(qkv, sinks, at::tensor(segments.cu_seqlens, at::kInt), shape);
  }
  if (shape.window > 0 || sinks_H.defined()) return attention_in_blocks(qkv, segments, shape, sinks_H);
  const int64_t length = segments.uniform_length();
  if (length > 0 && cudnn_takes(qkv, length, shape)) return CudnnAttention::apply(qkv, length, shape);
  if (length == 0 && flash_takes(qkv, shape)) {
    MOEBIUS_CHECK(segments.cu_seqlens_device.defined() && segments.cu_seqlens_device.device() == qkv.device(),
                  "documents of different lengths without their borders on ", qkv.device());
    return FlashAttention::apply(qkv, segments.cu_seqlens_device, segments.max_length, shape);
  }
  say_that_attention_is_slow(qkv, length, shape);
  return composite_attention(qkv, runs_of(segments), shape);
}

}  // namespace moebius::ops
