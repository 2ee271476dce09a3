// Shapes: T tokens, D model width, F expert width, E experts, K experts per token, V vocabulary, d head
// width.
#include "cli/layer_bench.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "moe/moe_feed_forward.h"
#include "ops/attention.h"
#include "ops/experts.h"
#include "ops/int8_training.h"
#include "ops/linear_loss.h"
#include "ops/route.h"
#include "train/optimizer.h"

namespace moebius::cli {
namespace {

using Tensors = std::vector<at::Tensor>;

constexpr double kWeightStd = 0.02;  // of the peers' weights

double as_double(int64_t value) {
  return static_cast<double>(value);
}

// Outputs and gradients of an op on `leaves`, named.
std::vector<NamedTensor> run_passes(const std::function<Tensors()>& forward, const Tensors& output_grads,
                                    const Tensors& leaves, const std::vector<std::string>& names) {
  const Tensors outputs = forward();
  const Tensors grads = torch::autograd::grad(outputs, leaves, output_grads);
  std::vector<NamedTensor> all;
  for (const at::Tensor& output : outputs) all.push_back({"output", output.detach()});
  for (size_t i = 0; i < grads.size(); ++i) all.push_back({"gradient of " + names[i], grads[i]});
  return all;
}

Tensors as_fp32_leaves(const Tensors& leaves) {
  Tensors all;
  for (const at::Tensor& leaf : leaves)
    all.push_back(leaf.detach().to(at::kFloat, /*non_blocking=*/false, /*copy=*/true).requires_grad_());
  return all;
}

// Experts one after the other, by index_select and index_add.
at::Tensor plain_experts(const Tensors& leaves, const at::Tensor& experts_TK) {
  const at::Tensor &x_TD = leaves[0], &gate_up_E2FD = leaves[1], &down_EDF = leaves[2],
                   &weights_TK = leaves[3];
  const Tensors gate_up = gate_up_E2FD.unbind(0), down = down_EDF.unbind(0);
  at::Tensor y_TD = at::zeros_like(x_TD);
  for (size_t e = 0; e < gate_up.size(); ++e) {
    const at::Tensor chosen_N2 = experts_TK.eq(static_cast<int64_t>(e)).nonzero();
    const at::Tensor token_N = chosen_N2.select(1, 0), slot_N = chosen_N2.select(1, 1);
    const at::Tensor gate_up_N2F = x_TD.index_select(0, token_N).mm(gate_up[e].t());
    const at::Tensor gate_NF = gate_up_N2F.slice(1, 0, {}, 2), up_NF = gate_up_N2F.slice(1, 1, {}, 2);
    const at::Tensor y_ND = (at::silu(gate_NF) * up_NF).mm(down[e].t());
    const at::Tensor weight_N1 = weights_TK.index({token_N, slot_N}).unsqueeze(1);
    y_TD = y_TD.index_add(0, token_N, y_ND * weight_N1);
  }
  return y_TD;
}

// Head after head with the whole matrix of scores.
at::Tensor plain_attention(const at::Tensor& qkv_TC, const LayerShape& shape) {
  const int64_t sequence = shape.sequence, width = shape.head_dim;
  const at::Tensor hidden_SS =
      at::ones({sequence, sequence}, qkv_TC.options().dtype(at::kBool)).triu(/*diagonal=*/1);
  const at::Tensor qkv_THd = qkv_TC.view({-1, shape.heads + 2 * shape.kv_heads, width});
  Tensors documents;
  for (int64_t begin = 0; begin < shape.tokens; begin += sequence) {
    Tensors heads;
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t kv = shape.heads + head / (shape.heads / shape.kv_heads);
      const auto rows = [&](int64_t which) { return qkv_THd.select(1, which).narrow(0, begin, sequence); };
      const at::Tensor scores_SS =
          rows(head).mm(rows(kv).t()).div(std::sqrt(as_double(width))).masked_fill(hidden_SS, -INFINITY);
      heads.push_back(scores_SS.softmax(-1).mm(rows(kv + shape.kv_heads)));
    }
    documents.push_back(at::cat(heads, 1));
  }
  return at::cat(documents);
}

}  // namespace

LayerBench moe_layer_bench(const LayerShape& shape, at::ScalarType dtype, at::Device device, bool int8) {
  at::manual_seed(1);
  const auto options = at::TensorOptions(dtype).device(device);
  const int64_t T = shape.tokens, D = shape.dim, F = shape.expert_dim, E = shape.experts;
  const at::Tensor x_TD = at::randn({T, D}, options);
  const at::Tensor logits_TE = x_TD.mm((at::randn({E, D}, options) * kWeightStd).t()).to(at::kFloat);
  ops::Routing routing = ops::route(logits_TE, {}, {}, 1, {.top_k = shape.top_k});
  routing.weights_TK = routing.weights_TK.detach().requires_grad_();
  const Tensors leaves{x_TD.requires_grad_(),
                       at::randn({E, 2 * F, D}, options).mul_(kWeightStd).requires_grad_(),
                       at::randn({E, D, F}, options).mul_(kWeightStd).requires_grad_(), routing.weights_TK};
  const Tensors output_grads{at::randn({T, D}, options)};
  LayerBench bench;
  bench.passes = {
      [leaves, routing] { return Tensors{ops::expert_ffn(leaves[0], leaves[1], leaves[2], routing)}; },
      output_grads, leaves};
  if (int8) {
    bench.op_class = ops::cases::OpClass::trained_in_codes;
    bench.passes.forward = [leaves, routing, gate_up = ops::int8_training_weight(leaves[1], true),
                            down = ops::int8_training_weight(leaves[2], false)] {
      return Tensors{ops::int8_training_expert_ffn(leaves[0], leaves[1], leaves[2], gate_up, down, routing)};
    };
  }
  const double rows = as_double(T * shape.top_k), size = as_double(c10::elementSize(dtype));
  const double weights = 3 * as_double(E * D * F), tokens = as_double(T * D),
               hidden = 2 * rows * as_double(F);
  bench.work.forward_flops = 6 * rows * as_double(D * F);
  bench.work.total_flops = 3 * bench.work.forward_flops;
  // Forward: x, weights, y, and the pre-activation that is kept. Backward: x, dy, dx, the pre-activation, the
  // weights and their gradients.
  bench.work.forward_bytes = size * (2 * tokens + weights + hidden);
  bench.work.total_bytes = bench.work.forward_bytes + size * (3 * tokens + 2 * weights + hidden);
  const std::vector<std::string> names{"x", "gate_up", "down", "weights"};
  bench.results = [passes = bench.passes, names] {
    return run_passes(passes.forward, passes.output_grads, passes.leaves, names);
  };
  bench.reference = [leaves, output_grads, names, experts_TK = routing.experts_TK] {
    const Tensors exact = as_fp32_leaves(leaves);
    return run_passes([&] { return Tensors{plain_experts(exact, experts_TK)}; },
                      {output_grads[0].to(at::kFloat)}, exact, names);
  };
  return bench;
}

LayerBench attention_bench(const LayerShape& shape, at::ScalarType dtype, at::Device device) {
  if (shape.heads == 0)
    throw_user_error("--shape ", shape.name, " is one of experts only, it has no attention");
  if (shape.tokens % shape.sequence != 0)
    throw_user_error("--tokens ", shape.tokens, " is no multiple of the sequence of ", shape.sequence,
                     " tokens; set --sequence too");
  at::manual_seed(1);
  const auto options = at::TensorOptions(dtype).device(device);
  const ops::AttentionShape form{shape.heads, shape.kv_heads, shape.head_dim};
  ops::Segments segments;
  for (int64_t at = 0; at <= shape.tokens; at += shape.sequence)
    segments.cu_seqlens.push_back(static_cast<int32_t>(at));
  segments.cu_seqlens_device = at::tensor(segments.cu_seqlens, at::kInt).to(device);
  segments.max_length = shape.sequence;
  const Tensors leaves{at::randn({shape.tokens, form.row_width()}, options).requires_grad_()};
  const Tensors output_grads{at::randn({shape.tokens, form.out_width()}, options)};
  LayerBench bench;
  bench.passes = {[leaves, segments, form] { return Tensors{ops::attention(leaves[0], segments, form)}; },
                  output_grads, leaves};
  const double size = as_double(c10::elementSize(dtype)), tokens = as_double(shape.tokens);
  bench.work.forward_flops = 2 * tokens * as_double(shape.sequence) * as_double(shape.heads * shape.head_dim);
  bench.work.total_flops = 3.5 * bench.work.forward_flops;
  const double in = tokens * as_double(form.row_width()), out = tokens * as_double(form.out_width());
  bench.work.forward_bytes = size * (in + out);
  bench.work.total_bytes = bench.work.forward_bytes + size * (2 * in + 2 * out);
  const std::vector<std::string> names{"qkv"};
  bench.results = [passes = bench.passes, names] {
    return run_passes(passes.forward, passes.output_grads, passes.leaves, names);
  };
  bench.reference = [leaves, output_grads, names, shape] {
    const Tensors exact = as_fp32_leaves(leaves);
    return run_passes([&] { return Tensors{plain_attention(exact[0], shape)}; },
                      {output_grads[0].to(at::kFloat)}, exact, names);
  };
  return bench;
}

LayerBench linear_ce_bench(const LayerShape& shape, at::ScalarType dtype, at::Device device) {
  at::manual_seed(1);
  const auto options = at::TensorOptions(dtype).device(device);
  const int64_t T = shape.tokens, D = shape.dim, V = shape.vocab;
  const Tensors leaves{at::randn({T, D}, options).requires_grad_(),
                       at::randn({V, D}, options).mul_(kWeightStd).requires_grad_()};
  const at::Tensor targets_T = at::randint(V, {T}, options.dtype(at::kLong));
  const double scale = 1.0 / as_double(T);
  const Tensors output_grads{at::ones({}, options.dtype(at::kFloat))};
  LayerBench bench;
  bench.op_class = ops::cases::OpClass::loss;
  bench.passes = {[leaves, targets_T, scale] {
                    return Tensors{ops::linear_cross_entropy(leaves[0], leaves[1], targets_T, scale)};
                  },
                  output_grads, leaves};
  const double size = as_double(c10::elementSize(dtype));
  bench.work.forward_flops = bench.work.total_flops = 6 * as_double(T) * as_double(D) * as_double(V);
  bench.work.forward_bytes = bench.work.total_bytes = size * 2 * (as_double(T * D) + as_double(V * D));
  const std::vector<std::string> names{"hidden", "weight"};
  bench.results = [passes = bench.passes, names] {
    return run_passes(passes.forward, passes.output_grads, passes.leaves, names);
  };
  bench.reference = [leaves, output_grads, names, targets_T, scale, T] {
    const Tensors exact = as_fp32_leaves(leaves);
    constexpr int64_t kRows = 2048;
    std::vector<NamedTensor> all;
    for (int64_t row = 0; row < T; row += kRows) {
      const int64_t count = std::min(kRows, T - row);
      const auto loss = [&] {
        const at::Tensor logits_NV = exact[0].narrow(0, row, count).mm(exact[1].t());
        return Tensors{
            at::cross_entropy_loss(logits_NV, targets_T.narrow(0, row, count), {}, at::Reduction::Sum) *
            scale};
      };
      const std::vector<NamedTensor> part = run_passes(loss, output_grads, exact, names);
      for (size_t i = 0; i < part.size(); ++i) {
        if (row == 0) {
          all.push_back(part[i]);
        } else {
          all[i].tensor += part[i].tensor;
        }
      }
    }
    return all;
  };
  return bench;
}

namespace {

// The parameters of one block of the shape with random gradients, and the optimizer over them.
struct AdamWBlock {
  nn::ParamTable params;
  std::unique_ptr<train::AdamW> optimizer;
  Tensors grads;

  void give_gradients() {
    auto grad = grads.begin();
    for (nn::Param& param : params.params()) param.value.mutable_grad() = *grad++;
  }
};

constexpr double kLearningRate = 1e-2;

}  // namespace

LayerBench adamw_bench(const LayerShape& shape, const config::OptimizerConfig& optimizer,
                       at::ScalarType dtype, at::Device device) {
  at::manual_seed(1);
  const auto block = std::make_shared<AdamWBlock>();
  const auto declare = [&](const char* name, std::vector<int64_t> dims) {
    block->params.declare({.name = name, .dims = std::move(dims), .init = nn::Init::normal(kWeightStd)});
  };
  declare("gate_up", {shape.experts, 2 * shape.expert_dim, shape.dim});
  declare("down", {shape.experts, shape.dim, shape.expert_dim});
  if (shape.heads > 0) {
    declare("qkv", {(shape.heads + 2 * shape.kv_heads) * shape.head_dim, shape.dim});
    declare("out", {shape.dim, shape.heads * shape.head_dim});
  }
  declare("norm", {shape.dim});
  block->params.allocate(dtype, device);
  for (nn::Param& param : block->params.params()) {
    const at::NoGradGuard no_grad;
    param.value.normal_(0, kWeightStd);
    block->grads.push_back(at::randn_like(param.value));
  }
  block->optimizer = std::make_unique<train::AdamW>(optimizer, block->params);
  const at::Tensor clip = at::ones({}, at::TensorOptions(at::kFloat).device(device));
  LayerBench bench;
  bench.op_class = ops::cases::OpClass::optimizer;
  const auto step = [block, clip] {
    const at::NoGradGuard no_grad;
    block->give_gradients();
    block->optimizer->step(kLearningRate, 1, clip);
  };
  bench.passes.forward = [step] {
    step();
    return Tensors{};
  };
  double state_bytes = 0;
  for (const ckpt::NamedTensor& state : block->optimizer->tensors())
    state_bytes += as_double(static_cast<int64_t>(state.tensor.nbytes()));
  // Gradients are read; parameters written, and read where there is no master copy; the state is read and
  // written.
  const bool has_master = dtype != at::kFloat && optimizer.master_weights;
  const double param_bytes =
      as_double(block->params.num_elements() * static_cast<int64_t>(c10::elementSize(dtype)));
  bench.work.forward_bytes = bench.work.total_bytes = param_bytes * (has_master ? 2 : 3) + 2 * state_bytes;
  // The first step from moments of zero: m = (1 - b1) g and v = (1 - b2) g^2, both corrected to g and g^2.
  const auto before = std::make_shared<Tensors>();
  for (const nn::Param& param : block->params.params()) before->push_back(param.value.detach().clone());
  const auto restart = [block, before] {
    const at::NoGradGuard no_grad;
    for (const ckpt::NamedTensor& state : block->optimizer->tensors()) {
      if (!state.name.starts_with("master.")) at::Tensor(state.tensor).zero_();
    }
    size_t i = 0;
    for (nn::Param& param : block->params.params()) {
      param.value.copy_((*before)[i]);
      for (const ckpt::NamedTensor& state : block->optimizer->tensors())
        if (state.name == "master." + param.spec.name) at::Tensor(state.tensor).copy_((*before)[i]);
      ++i;
    }
  };
  bench.results = [block, restart, step] {
    restart();
    step();
    std::vector<NamedTensor> all;
    for (const nn::Param& param : block->params.params())
      all.push_back({param.spec.name, param.value.detach()});
    return all;
  };
  bench.reference = [block, before, optimizer] {
    std::vector<NamedTensor> all;
    size_t i = 0;
    for (const nn::Param& param : block->params.params()) {
      const at::Tensor w = (*before)[i].to(at::kFloat), g = block->grads[i].to(at::kFloat);
      all.push_back({param.spec.name, w * (1 - kLearningRate * optimizer.weight_decay) -
                                          g / (g.abs() + optimizer.eps) * kLearningRate});
      ++i;
    }
    return all;
  };
  return bench;
}

double largest_error(const std::vector<NamedTensor>& got, const std::vector<NamedTensor>& want,
                     std::string* where) {
  double largest = 0;
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < got.size(); ++i) {
    const at::Tensor &a = got[i].tensor, &b = want[i].tensor;
    double error = std::numeric_limits<double>::infinity();
    if (a.sizes() == b.sizes()) {
      const at::Tensor exact = b.to(at::kFloat);
      const double size = exact.norm().item<double>(),
                   apart = (a.to(at::kFloat) - exact).norm().item<double>();
      if (std::isfinite(apart)) error = size > 0 ? apart / size : apart;
    }
    if (error < largest || (i > 0 && error == largest)) continue;
    largest = error;
    *where = want[i].name;
  }
  return largest;
}

}  // namespace moebius::cli
