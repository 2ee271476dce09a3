#include "ops/rope.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "base/check.h"
#include "ops/device.h"

namespace moebius::ops {
namespace {

using kernels::QkNorm;
using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

kernels::RopeShape kernel_shape(const at::Tensor& qkv, const RopeOptions& options) {
  return {qkv.size(0),       options.num_heads, options.num_kv_heads,
          options.head_dim,  options.norm,      static_cast<float>(options.eps),
          kernel_dtype(qkv), options.rotary_dim};
}

const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

class QkNormRope : public Function<QkNormRope> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& qkv,
                            const std::optional<at::Tensor>& q_weight_or,
                            const std::optional<at::Tensor>& k_weight_or, const at::Tensor& positions,
                            const at::Tensor& cos_sin, const RopeOptions& options) {
    const at::Tensor q_weight = q_weight_or.value_or(at::Tensor()),
                     k_weight = k_weight_or.value_or(at::Tensor());
    const kernels::RopeShape shape = kernel_shape(qkv, options);
    const bool normalised = options.norm != QkNorm::none;
    at::Tensor out = at::empty_like(qkv);
    at::Tensor inv_rms;
    if (normalised)
      inv_rms = at::empty({shape.num_tokens, shape.num_norm_groups()}, qkv.options().dtype(at::kFloat));
    if (qkv.numel() > 0) {
      kernels::RopeForwardArgs args{};
      args.shape = shape;
      args.qkv_in = qkv.const_data_ptr();
      args.qkv_out = out.mutable_data_ptr();
      args.q_weight = data_or_null(q_weight);
      args.k_weight = data_or_null(k_weight);
      args.inv_rms = normalised ? inv_rms.mutable_data_ptr<float>() : nullptr;
      args.positions = positions.const_data_ptr<int32_t>();
      args.cos_sin = cos_sin.const_data_ptr<float>();
      kernel_table(qkv.device()).rope_forward(args, current_stream(qkv.device()));
    }
    // Without normalisation the rotation needs only the angles to be undone.
    ctx->save_for_backward(
        {normalised ? qkv : at::Tensor(), q_weight, k_weight, positions, cos_sin, inv_rms});
    ctx->saved_data["heads"] = options.num_heads;
    ctx->saved_data["kv_heads"] = options.num_kv_heads;
    ctx->saved_data["head_dim"] = options.head_dim;
    ctx->saved_data["norm"] = static_cast<int64_t>(options.norm);
    ctx->saved_data["eps"] = options.eps;
    ctx->saved_data["rotary_dim"] = options.rotary_dim;
    ctx->set_materialize_grads(false);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    if (!grads[0].defined()) return variable_list(6);
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &qkv = saved[0], &q_weight = saved[1], &k_weight = saved[2], &inv_rms = saved[5];
    RopeOptions options;
    options.num_heads = ctx->saved_data["heads"].toInt();
    options.num_kv_heads = ctx->saved_data["kv_heads"].toInt();
    options.head_dim = ctx->saved_data["head_dim"].toInt();
    options.norm = static_cast<QkNorm>(ctx->saved_data["norm"].toInt());
    options.eps = ctx->saved_data["eps"].toDouble();
    options.rotary_dim = ctx->saved_data["rotary_dim"].toInt();
    const bool normalised = options.norm != QkNorm::none;

    const at::Tensor grad_out = grads[0].contiguous();
    at::Tensor grad_in = at::empty_like(grad_out);
    at::Tensor grad_q, grad_k;
    if (normalised) {
      grad_q = at::empty(q_weight.sizes(), q_weight.options().dtype(at::kFloat));
      grad_k = at::empty(k_weight.sizes(), k_weight.options().dtype(at::kFloat));
    }
    if (grad_out.numel() > 0) {
      kernels::RopeBackwardArgs args{};
      args.shape = kernel_shape(grad_out, options);
      args.qkv_in = data_or_null(qkv);
      args.grad_out = grad_out.const_data_ptr();
      args.grad_in = grad_in.mutable_data_ptr();
      args.q_weight = data_or_null(q_weight);
      args.k_weight = data_or_null(k_weight);
      args.inv_rms = normalised ? inv_rms.const_data_ptr<float>() : nullptr;
      args.grad_q_weight = normalised ? grad_q.mutable_data_ptr<float>() : nullptr;
      args.grad_k_weight = normalised ? grad_k.mutable_data_ptr<float>() : nullptr;
      args.positions = saved[3].const_data_ptr<int32_t>();
      args.cos_sin = saved[4].const_data_ptr<float>();
      kernel_table(grad_out.device()).rope_backward(args, current_stream(grad_out.device()));
    } else if (normalised) {
      grad_q.zero_();
      grad_k.zero_();
    }
    if (normalised) {
      grad_q = grad_q.to(q_weight.scalar_type());
      grad_k = grad_k.to(k_weight.scalar_type());
    }
    return {grad_in, grad_q, grad_k, {}, {}, {}};
  }
};

void check_weight(const char* name, const at::Tensor& weight, int64_t size, const at::Tensor& qkv) {
  MOEBIUS_CHECK(weight.defined() && weight.dim() == 1 && weight.size(0) == size, name,
                " of the norm must have ", size, " elements");
  MOEBIUS_CHECK(weight.scalar_type() == qkv.scalar_type() && weight.device() == qkv.device(), name, " is ",
                weight.scalar_type(), " on ", weight.device(), ", qkv is ", qkv.scalar_type(), " on ",
                qkv.device());
}

at::Tensor normalised(const at::Tensor& heads_THd, const at::Tensor& weight, const RopeOptions& options) {
  if (options.norm == QkNorm::none) return heads_THd;
  const at::Tensor x = options.norm == QkNorm::full ? heads_THd.flatten(1) : heads_THd;
  return (x * (x.square().mean(-1, true) + options.eps).rsqrt() * weight.to(at::kFloat))
      .view(heads_THd.sizes());
}

// x in fp32; cos_sin_TD of the tokens' positions.
at::Tensor rotated(const at::Tensor& x_THd, const at::Tensor& cos_sin_TD) {
  const int64_t half = x_THd.size(-1) / 2;
  const at::Tensor cos = cos_sin_TD.narrow(1, 0, half).unsqueeze(1),
                   sin = cos_sin_TD.narrow(1, half, half).unsqueeze(1);
  const at::Tensor first = x_THd.narrow(-1, 0, half), second = x_THd.narrow(-1, half, half);
  return at::cat({first * cos - second * sin, second * cos + first * sin}, -1);
}

// qk_norm_rope of heads that are rotated in part, by libtorch's operators.
at::Tensor composite(const at::Tensor& qkv_TC, const at::Tensor& q_weight, const at::Tensor& k_weight,
                     const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                     const RopeOptions& options) {
  const int64_t turned = options.rotary_dim, rest = options.head_dim - turned;
  const at::Tensor cos_sin_TD = cos_sin_PD.index_select(0, positions_T);
  const at::Tensor heads = qkv_TC.unflatten(1, {-1, options.head_dim});
  const auto part = [&](int64_t first, int64_t count, const at::Tensor& weight) {
    const at::Tensor x = normalised(heads.narrow(1, first, count).to(at::kFloat), weight, options);
    return at::cat({rotated(x.narrow(-1, 0, turned), cos_sin_TD), x.narrow(-1, turned, rest)}, -1)
        .to(qkv_TC.scalar_type());
  };
  const int64_t h = options.num_heads, hk = options.num_kv_heads;
  return at::cat({part(0, h, q_weight), part(h, hk, k_weight), heads.narrow(1, h + hk, hk)}, 1).flatten(1);
}

}  // namespace

at::Tensor rope_table(int64_t num_positions, int64_t dim, double theta, at::Device device,
                      const RopeScaling& scaling, int64_t context) {
  MOEBIUS_CHECK(dim % 2 == 0 && num_positions >= 0, "rotated elements ", dim, ", positions ", num_positions);
  const int64_t half = dim / 2;
  at::Tensor table = at::empty({num_positions, dim}, at::kFloat);
  float* row = table.mutable_data_ptr<float>();
  const std::vector<double> frequency = rope_frequencies(dim, theta, scaling, context);
  const double factor = rope_attention_factor(scaling);
  for (int64_t p = 0; p < num_positions; ++p, row += dim) {
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) * frequency[static_cast<size_t>(i)];
      row[i] = static_cast<float>(factor * std::cos(angle));
      row[half + i] = static_cast<float>(factor * std::sin(angle));
    }
  }
  return table.to(device);
}

at::Tensor rotate(const at::Tensor& x_THd, const at::Tensor& positions_T, const at::Tensor& cos_sin_Pd) {
  MOEBIUS_CHECK(
      x_THd.dim() == 3 && x_THd.size(2) == cos_sin_Pd.size(1) && x_THd.size(0) == positions_T.size(0),
      "rotation of ", x_THd.sizes(), " at positions ", positions_T.sizes(), " with angles ",
      cos_sin_Pd.sizes());
  return rotated(x_THd.to(at::kFloat), cos_sin_Pd.index_select(0, positions_T)).to(x_THd.scalar_type());
}

at::Tensor qk_norm_rope(const at::Tensor& qkv_TC, const at::Tensor& q_weight, const at::Tensor& k_weight,
                        const at::Tensor& positions_T, const at::Tensor& cos_sin_PD,
                        const RopeOptions& options) {
  const int64_t columns = (options.num_heads + 2 * options.num_kv_heads) * options.head_dim;
  MOEBIUS_CHECK(options.num_heads >= 1 && options.num_kv_heads >= 1 && options.head_dim >= 2 &&
                    options.head_dim % 2 == 0,
                "heads ", options.num_heads, ", kv heads ", options.num_kv_heads, ", head dim ",
                options.head_dim);
  MOEBIUS_CHECK(qkv_TC.dim() == 2 && qkv_TC.size(1) == columns, "qkv is ", qkv_TC.sizes(), ", expected (T, ",
                columns, ")");
  MOEBIUS_CHECK(positions_T.dim() == 1 && positions_T.size(0) == qkv_TC.size(0) &&
                    positions_T.scalar_type() == at::kInt,
                "positions are ", positions_T.sizes(), " ", positions_T.scalar_type(), " for qkv ",
                qkv_TC.sizes());
  const int64_t rotary_dim = options.rotary_dim > 0 ? options.rotary_dim : options.head_dim;
  MOEBIUS_CHECK(rotary_dim % 2 == 0 && rotary_dim <= options.head_dim, "rotated elements ", rotary_dim,
                " of ", options.head_dim);
  MOEBIUS_CHECK(cos_sin_PD.dim() == 2 && cos_sin_PD.size(1) == rotary_dim &&
                    cos_sin_PD.scalar_type() == at::kFloat && cos_sin_PD.is_contiguous(),
                "the table of angles is ", cos_sin_PD.sizes(), " ", cos_sin_PD.scalar_type());
  MOEBIUS_CHECK(positions_T.device() == qkv_TC.device() && cos_sin_PD.device() == qkv_TC.device(),
                "qkv is on ", qkv_TC.device(), ", positions on ", positions_T.device(), ", angles on ",
                cos_sin_PD.device());
  const bool through_libtorch = rotary_dim < options.head_dim && !qkv_TC.is_cpu();
  if (options.norm == QkNorm::none) {
    if (through_libtorch) return composite(qkv_TC, q_weight, k_weight, positions_T, cos_sin_PD, options);
    return QkNormRope::apply(qkv_TC.contiguous(), std::optional<at::Tensor>(), std::optional<at::Tensor>(),
                             positions_T.contiguous(), cos_sin_PD, options);
  }
  const bool full = options.norm == QkNorm::full;
  check_weight("q_weight", q_weight, options.head_dim * (full ? options.num_heads : 1), qkv_TC);
  check_weight("k_weight", k_weight, options.head_dim * (full ? options.num_kv_heads : 1), qkv_TC);
  if (through_libtorch) return composite(qkv_TC, q_weight, k_weight, positions_T, cos_sin_PD, options);
  return QkNormRope::apply(qkv_TC.contiguous(), std::optional<at::Tensor>(q_weight.contiguous()),
                           std::optional<at::Tensor>(k_weight.contiguous()), positions_T.contiguous(),
                           cos_sin_PD, options);
}

}  // namespace moebius::ops
