// Shapes: T tokens, B documents of S tokens each, H query heads, Hk key and value heads, d elements per head.
// Everything works on strided views of the fused projection; the gradients of queries, keys and values are
// written into the columns of one (T, C) tensor.
#include "ops/attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "kernels/api/attention.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

struct Parts {
  at::Tensor q, k, v;
};

int64_t width_of(const AttentionShape& shape) {
  return (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
}

// Views (T, H, d), (T, Hk, d), (T, Hk, d) of the columns of a (T, C) tensor.
Parts split(const at::Tensor& qkv_TC, const AttentionShape& shape) {
  const int64_t num_tokens = qkv_TC.size(0), d = shape.head_dim;
  const at::Tensor heads = qkv_TC.view({num_tokens, shape.num_heads + 2 * shape.num_kv_heads, d});
  return {heads.narrow(1, 0, shape.num_heads), heads.narrow(1, shape.num_heads, shape.num_kv_heads),
          heads.narrow(1, shape.num_heads + shape.num_kv_heads, shape.num_kv_heads)};
}

// (T, heads, d) as (B, heads, S, d), a view.
at::Tensor by_document(const at::Tensor& x, int64_t length) {
  return x.unflatten(0, {x.size(0) / length, length}).transpose(1, 2);
}

Parts by_document(const Parts& parts, int64_t length) {
  return {by_document(parts.q, length), by_document(parts.k, length), by_document(parts.v, length)};
}

// A gradient (B, heads, S, d) into its columns (T, heads, d). Query heads that share a key head add up.
void store(const at::Tensor& grad, const at::Tensor& columns, int64_t length) {
  const at::Tensor target = by_document(columns, length);
  if (grad.size(1) == target.size(1)) {
    target.copy_(grad);
  } else {
    target.copy_(grad.unflatten(1, {target.size(1), grad.size(1) / target.size(1)}).sum(2));
  }
}

// First and last token of a run of documents of one length.
struct Run {
  int64_t begin, end, length;
};

std::vector<Run> runs_of(const Segments& segments) {
  std::vector<Run> runs;
  const auto& cu = segments.cu_seqlens;
  for (size_t i = 0; i + 1 < cu.size(); ++i) {
    const int64_t length = cu[i + 1] - cu[i];
    if (length == 0) continue;
    if (!runs.empty() && runs.back().length == length) {
      runs.back().end = cu[i + 1];
    } else {
      runs.push_back({cu[i], cu[i + 1], length});
    }
  }
  return runs;
}

Parts rows(const Parts& parts, const Run& run) {
  const int64_t count = run.end - run.begin;
  return {parts.q.narrow(0, run.begin, count), parts.k.narrow(0, run.begin, count),
          parts.v.narrow(0, run.begin, count)};
}

kernels::AttentionShape kernel_shape(const at::Tensor& qkv, const at::Tensor& cu_seqlens,
                                     const AttentionShape& shape) {
  return {cu_seqlens.const_data_ptr<int32_t>(),
          cu_seqlens.size(0) - 1,
          qkv.size(0),
          shape.num_heads,
          shape.num_kv_heads,
          shape.head_dim,
          kernel_dtype(qkv)};
}

// The project's own kernel (kernels/api/attention.h). cu_seqlens lies on the CPU.
class CpuAttention : public Function<CpuAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv, const at::Tensor& cu_seqlens,
                            const AttentionShape& shape) {
    at::Tensor out = at::empty({qkv.size(0), shape.num_heads * shape.head_dim}, qkv.options());
    at::Tensor lse = at::empty({shape.num_heads, qkv.size(0)}, qkv.options().dtype(at::kFloat));
    kernels::AttentionForwardArgs args{};
    args.shape = kernel_shape(qkv, cu_seqlens, shape);
    args.qkv = qkv.const_data_ptr();
    args.out = out.mutable_data_ptr();
    args.lse = lse.mutable_data_ptr<float>();
    kernel_table(qkv.device()).attention_forward(args, current_stream(qkv.device()));
    ctx->save_for_backward({qkv, out, lse, cu_seqlens});
    ctx->set_materialize_grads(false);
    ctx->saved_data["sizes"] = std::vector<int64_t>{shape.num_heads, shape.num_kv_heads, shape.head_dim};
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(3);
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
    const at::Tensor& qkv = saved[0];
    const at::Tensor grad_out = grads[0].contiguous();
    at::Tensor grad_qkv = at::empty_like(qkv);
    kernels::AttentionBackwardArgs args{};
    args.shape = kernel_shape(qkv, saved[3], {sizes[0], sizes[1], sizes[2]});
    args.qkv = qkv.const_data_ptr();
    args.out = saved[1].const_data_ptr();
    args.lse = saved[2].const_data_ptr<float>();
    args.grad_out = grad_out.const_data_ptr();
    args.grad_qkv = grad_qkv.mutable_data_ptr();
    kernel_table(qkv.device()).attention_backward(args, current_stream(qkv.device()));
    return {grad_qkv, {}, {}};
  }
};

// Documents of one length through cuDNN, which reads and writes strided views and shares key heads itself.
class CudnnAttention : public Function<CudnnAttention> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv, int64_t length,
                            const AttentionShape& shape) {
    const Parts in = by_document(split(qkv, shape), length);
    auto [out, lse, cum_q, cum_k, max_q, max_k, seed, offset, mask] =
        at::_scaled_dot_product_cudnn_attention(in.q, in.k, in.v, {}, /*compute_log_sumexp=*/true, 0.0, true);
    out = out.transpose(1, 2).reshape({qkv.size(0), shape.num_heads * shape.head_dim});
    ctx->save_for_backward({qkv, out, lse, seed, offset, cum_q, cum_k});
    ctx->set_materialize_grads(false);
    ctx->saved_data["sizes"] = std::vector<int64_t>{shape.num_heads, shape.num_kv_heads, shape.head_dim,
                                                    length,          max_q.expect_int(), max_k.expect_int()};
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(3);
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
    const AttentionShape shape{sizes[0], sizes[1], sizes[2]};
    const int64_t length = sizes[3];
    const at::Tensor& qkv = saved[0];
    const std::vector<int64_t> heads{qkv.size(0), shape.num_heads, shape.head_dim};
    const Parts in = by_document(split(qkv, shape), length);
    const auto [grad_q, grad_k, grad_v] = at::_scaled_dot_product_cudnn_attention_backward(
        by_document(grads[0].contiguous().view(heads), length), in.q, in.k, in.v,
        by_document(saved[1].view(heads), length), saved[2], saved[3], saved[4], {}, saved[5], saved[6],
        sizes[4], sizes[5], 0.0, true);
    at::Tensor grad_qkv = at::empty_like(qkv);
    const Parts columns = split(grad_qkv, shape);
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
    const Parts in = split(qkv, shape);
    auto [out, lse, rng_state, unused, mask] =
        at::_flash_attention_forward(in.q, in.k, in.v, cu_seqlens, cu_seqlens, max_length, max_length, 0.0,
                                     /*is_causal=*/true, /*return_debug_mask=*/false);
    out = out.reshape({qkv.size(0), shape.num_heads * shape.head_dim});
    ctx->save_for_backward({qkv, out, lse, rng_state, unused, cu_seqlens});
    ctx->set_materialize_grads(false);
    ctx->saved_data["sizes"] =
        std::vector<int64_t>{shape.num_heads, shape.num_kv_heads, shape.head_dim, max_length};
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(4);
    const variable_list saved = ctx->get_saved_variables();
    const std::vector<int64_t> sizes = ctx->saved_data["sizes"].toIntVector();
    const AttentionShape shape{sizes[0], sizes[1], sizes[2]};
    const at::Tensor& qkv = saved[0];
    const std::vector<int64_t> heads{qkv.size(0), shape.num_heads, shape.head_dim};
    const Parts in = split(qkv, shape);
    const auto [grad_q, grad_k, grad_v] = at::_flash_attention_backward(
        grads[0].contiguous().view(heads), in.q, in.k, in.v, saved[1].view(heads), saved[2], saved[5],
        saved[5], sizes[3], sizes[3], 0.0, true, saved[3], saved[4]);
    at::Tensor grad_qkv = at::empty_like(qkv);
    const Parts columns = split(grad_qkv, shape);
    columns.q.copy_(grad_q);
    columns.k.copy_(grad_k);
    columns.v.copy_(grad_v);
    return {grad_qkv, {}, {}, {}};
  }
};

// Whatever libtorch has for shapes and dtypes that no fused kernel takes, with libtorch's autograd.
at::Tensor composite_attention(const at::Tensor& qkv, const std::vector<Run>& runs,
                               const AttentionShape& shape) {
  std::vector<at::Tensor> outs;
  const Parts all = split(qkv, shape);
  for (const Run& run : runs) {
    const Parts in = by_document(rows(all, run), run.length);
    const at::Tensor out =
        at::scaled_dot_product_attention(in.q, in.k, in.v, {}, 0.0, /*is_causal=*/true, {},
                                         /*enable_gqa=*/shape.num_heads != shape.num_kv_heads);
    outs.push_back(out.transpose(1, 2).reshape({-1, shape.num_heads * shape.head_dim}));
  }
  return outs.size() == 1 ? outs[0] : at::cat(outs);
}

// libtorch's choice for these inputs is cuDNN (the value of sdp::SDPBackend::cudnn_attention).
bool cudnn_takes(const at::Tensor& qkv, int64_t length, const AttentionShape& shape) {
  constexpr int64_t kCudnnBackend = 3;
  const Parts in = by_document(split(qkv, shape), length);
  return at::_fused_sdp_choice(in.q, in.k, in.v, {}, 0.0, /*is_causal=*/true, {},
                               /*enable_gqa=*/shape.num_heads != shape.num_kv_heads) == kCudnnBackend;
}

bool flash_takes(const at::Tensor& qkv, const AttentionShape& shape) {
  return qkv.scalar_type() == at::kBFloat16 && shape.head_dim % 8 == 0 && shape.head_dim <= 256;
}

void check_arguments(const at::Tensor& qkv, const Segments& segments, const AttentionShape& shape) {
  MOEBIUS_CHECK(shape.num_kv_heads >= 1 && shape.head_dim >= 1 && shape.num_heads % shape.num_kv_heads == 0,
                "attention with ", shape.num_heads, " heads of ", shape.head_dim, " and ", shape.num_kv_heads,
                " key heads");
  MOEBIUS_CHECK(qkv.dim() == 2 && qkv.size(1) == width_of(shape), "attention on ", qkv.sizes(),
                " with rows of ", width_of(shape));
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

at::Tensor attention(const at::Tensor& qkv_TC, const Segments& segments, const AttentionShape& shape) {
  check_arguments(qkv_TC, segments, shape);
  const at::Tensor qkv = qkv_TC.contiguous();
  if (qkv.size(0) == 0) return qkv.narrow(1, 0, shape.num_heads * shape.head_dim);
  if (qkv.is_cpu()) {
    return CpuAttention::apply(qkv, at::tensor(segments.cu_seqlens, at::kInt), shape);
  }
  const int64_t length = segments.uniform_length();
  if (length > 0 && cudnn_takes(qkv, length, shape)) return CudnnAttention::apply(qkv, length, shape);
  if (length == 0 && flash_takes(qkv, shape)) {
    MOEBIUS_CHECK(segments.cu_seqlens_device.defined() && segments.cu_seqlens_device.device() == qkv.device(),
                  "documents of different lengths without their borders on ", qkv.device());
    return FlashAttention::apply(qkv, segments.cu_seqlens_device, segments.max_length, shape);
  }
  return composite_attention(qkv, runs_of(segments), shape);
}

}  // namespace moebius::ops
