#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "base/concat.h"
#include "ops/cases/case.h"
#include "ops/optimizer.h"

namespace moebius::ops::cases {
namespace {

using Sizes = std::vector<int64_t>;

// What an optimizer keeps beside a parameter of the dtype of the run.
enum class Storage : uint8_t {
  same,    // moments in that dtype, no master copy
  master,  // fp32 master copy and moments
};

// Large steps on small weights, so that an error of the step shows in the weight.
constexpr double kLearningRate = 0.05, kWeightDecay = 0.3, kWeightScale = 0.02;
constexpr AdamWOptions kOptions{0.9, 0.95, 1e-8, 3};

// in: clip factor, then per tensor param, grad, m, v and, with a master copy, master.
size_t inputs_per_tensor(Storage storage) {
  return storage == Storage::master ? 5 : 4;
}

Outputs named(const Tensors& in, Storage storage, bool exact) {
  Outputs outputs;
  const size_t step = inputs_per_tensor(storage);
  for (size_t i = 1; i < in.size(); i += step) {
    const std::string number = concat("[", (i - 1) / step, "]");
    outputs.push_back({"param" + number, in[i], exact});
    outputs.push_back({"m" + number, in[i + 2], exact});
    outputs.push_back({"v" + number, in[i + 3], exact});
    if (storage == Storage::master) outputs.push_back({"master" + number, in[i + 4], exact});
  }
  return outputs;
}

Outputs stepped(const Tensors& in, Storage storage, bool exact) {
  std::vector<AdamWState> states;
  const size_t step = inputs_per_tensor(storage);
  for (size_t i = 1; i < in.size(); i += step)
    states.push_back({in[i],
                      storage == Storage::master ? in[i + 4] : at::Tensor(),
                      in[i + 1],
                      in[i + 2],
                      in[i + 3],
                      kLearningRate,
                      kWeightDecay,
                      0,
                      {},
                      {}});
  adamw_step(states, kOptions, in[0]);
  return named(in, storage, exact);
}

Outputs plain_step(const Tensors& in, Storage storage, bool exact, int64_t step_number = kOptions.step) {
  Tensors out = in;
  const double clip = in[0].item<double>();
  if (!std::isfinite(clip)) return named(out, storage, exact);
  const size_t step = inputs_per_tensor(storage);
  const auto steps = static_cast<double>(step_number);
  for (size_t i = 1; i < in.size(); i += step) {
    const at::Tensor g = in[i + 1] * clip;
    const at::Tensor m = in[i + 2] * kOptions.beta1 + g * (1 - kOptions.beta1);
    const at::Tensor v = in[i + 3] * kOptions.beta2 + g * g * (1 - kOptions.beta2);
    const at::Tensor m_hat = m / (1 - std::pow(kOptions.beta1, steps));
    const at::Tensor v_hat = v / (1 - std::pow(kOptions.beta2, steps));
    const at::Tensor w = storage == Storage::master ? in[i + 4] : in[i];
    const at::Tensor moved =
        w - w * (kLearningRate * kWeightDecay) - m_hat / (v_hat.sqrt() + kOptions.eps) * kLearningRate;
    out[i] = moved;
    out[i + 2] = m;
    out[i + 3] = v;
    if (storage == Storage::master) out[i + 4] = moved;
  }
  return named(out, storage, exact);
}

Example adamw_example(const Sizes& sizes, Storage storage, double clip) {
  const auto kind = InputKind::typed_constant;
  const auto state_kind = storage == Storage::master ? InputKind::constant : kind;
  std::vector<Input> inputs{{"grad_scale", at::full({}, clip, at::kDouble), InputKind::constant}};
  for (const int64_t size : sizes) {
    inputs.push_back({"param", at::randn({size}, at::kDouble) * kWeightScale, kind});
    inputs.push_back({"grad", at::randn({size}, at::kDouble), kind});
    inputs.push_back({"m", at::randn({size}, at::kDouble) * 0.3, state_kind});
    inputs.push_back({"v", at::rand({size}, at::kDouble) + 0.01, state_kind});
    if (storage == Storage::master)
      inputs.push_back({"master", at::randn({size}, at::kDouble) * kWeightScale, state_kind});
  }
  const bool exact = !std::isfinite(clip);  // nothing may change
  return {inputs, [=](const Tensors& in) { return stepped(in, storage, exact); },
          [=](const Tensors& in) { return plain_step(in, storage, exact); }};
}

// Moments in eight bits, after a first step from none: in: clip factor, then per tensor param, grad of the
// first step, grad of the second. The codes are compared by their values.
Outputs coded_steps(const Tensors& in, bool exact) {
  Outputs outputs;
  for (size_t i = 1; i < in.size(); i += 3) {
    const auto fp32 = in[0].options();
    const auto bytes = fp32.dtype(at::kByte);
    AdamWState state{.param = in[i],
                     .master = {},
                     .grad = in[i + 1],
                     .m = at::zeros(in[i].sizes(), bytes),
                     .v = at::zeros(in[i].sizes(), bytes),
                     .lr = kLearningRate,
                     .weight_decay = kWeightDecay,
                     .scalar_index = static_cast<int64_t>(i / 3),
                     .m_scale = at::zeros({moment_blocks(in[i].numel())}, fp32),
                     .v_scale = at::zeros({moment_blocks(in[i].numel())}, fp32)};
    for (int64_t step = 1; step <= 2; ++step) {
      AdamWOptions options = kOptions;
      options.step = step;
      adamw_step({state}, options, in[0]);
      state.grad = in[i + 2];
    }
    const std::string number = concat("[", i / 3, "]");
    outputs.push_back({"param" + number, in[i], exact});
    outputs.push_back({"m" + number, moment_values(state.m, state.m_scale, true), exact});
    outputs.push_back({"v" + number, moment_values(state.v, state.v_scale, false), exact});
  }
  return outputs;
}

Outputs plain_coded_steps(const Tensors& in, bool exact) {
  Outputs outputs;
  for (size_t i = 1; i < in.size(); i += 3) {
    Tensors one{in[0], in[i], in[i + 1], at::zeros_like(in[i]), at::zeros_like(in[i])};
    for (int64_t step = 1; step <= 2; ++step) {
      const Outputs after = plain_step(one, Storage::same, false, step);
      one = {in[0], after[0].value, in[i + 2], after[1].value, after[2].value};
    }
    const std::string number = concat("[", i / 3, "]");
    outputs.push_back({"param" + number, one[1], exact});
    outputs.push_back({"m" + number, one[3], exact});
    outputs.push_back({"v" + number, one[4], exact});
  }
  return outputs;
}

Example coded_example(const Sizes& sizes, double clip) {
  std::vector<Input> inputs{{"grad_scale", at::full({}, clip, at::kDouble), InputKind::constant}};
  for (const int64_t size : sizes) {
    inputs.push_back({"param", at::randn({size}, at::kDouble) * kWeightScale, InputKind::typed_constant});
    for (const char* name : {"grad", "second grad"})
      inputs.push_back({name, at::randn({size}, at::kDouble), InputKind::typed_constant});
  }
  const bool exact = !std::isfinite(clip);  // nothing may change
  return {inputs, [=](const Tensors& in) { return coded_steps(in, exact); },
          [=](const Tensors& in) { return plain_coded_steps(in, exact); }};
}

// clip_scale of the same gradients as well.
Example global_norm_example(const Sizes& sizes, double max_norm) {
  std::vector<Input> inputs;
  for (const int64_t size : sizes)
    inputs.push_back({"grad", at::randn({size}, at::kDouble), InputKind::typed_constant});
  return {inputs,
          [max_norm](const Tensors& in) {
            const at::Tensor norm = global_norm(in);
            return Outputs{{"norm", norm}, {"clip_scale", clip_scale(norm, max_norm)}};
          },
          [max_norm](const Tensors& in) {
            at::Tensor sum = at::zeros({}, at::kDouble);
            for (const at::Tensor& grad : in) sum = sum + grad.square().sum();
            const double norm = std::sqrt(sum.item<double>());
            const double factor = max_norm == 0 || norm <= max_norm ? 1.0 : max_norm / norm;
            return Outputs{{"norm", at::full({}, norm, at::kDouble)},
                           {"clip_scale", at::full({}, factor, at::kDouble)}};
          }};
}

}  // namespace

void add_optimizer_cases(CaseList& cases) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  struct AdamWRow {
    std::string name;
    Sizes sizes;
    double clip = 0.5;
    Size size = Size::small;
  };
  const std::vector<AdamWRow> rows{
      {"n1", {1}},
      {"mixed_sizes", {1, 1000, 7, 0, 4097, 64}},
      {"unclipped", {129}, 1.0},
      {"infinite_scale_changes_nothing", {33, 128}, kInfinity},
      {"nan_scale_changes_nothing", {33, 128}, std::numeric_limits<double>::quiet_NaN()},
      {"n3000000", {1000000, 2000000}, 0.5, Size::bench},
      {"n200000000", Sizes(20, 10000000), 0.5, Size::large},
  };
  for (const AdamWRow& row : rows) {
    double count = 0;
    for (const int64_t size : row.sizes) count += static_cast<double>(size);
    cases.push_back({.name = "adamw/" + row.name,
                     .op_class = OpClass::optimizer,
                     .work = {Work::Unit::elements, 7 * count},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return adamw_example(row.sizes, Storage::same, row.clip); }});
    cases.push_back({.name = "adamw_master/" + row.name,
                     .op_class = OpClass::optimizer,
                     .work = {Work::Unit::bytes, 28 * count},
                     .dtypes = {at::kBFloat16},
                     .size = row.size,
                     .make = [row] { return adamw_example(row.sizes, Storage::master, row.clip); }});
    cases.push_back({.name = "adamw_8bit/" + row.name,
                     .op_class = OpClass::coded,
                     .work = {Work::Unit::elements, 2 * 5 * count},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return coded_example(row.sizes, row.clip); }});
  }

  struct NormRow {
    std::string name;
    Sizes sizes;
    double max_norm;
    Size size = Size::small;
  };
  const std::vector<NormRow> norms{
      {"n1", {1}, 1.0},
      {"mixed_sizes_clipped", {1, 1000, 7, 0, 4097, 64}, 1.0},
      {"mixed_sizes_below_the_limit", {1, 100, 7}, 1e6},
      {"no_limit", {100, 33}, 0.0},
      {"n3000000", {1000000, 2000000}, 1.0, Size::bench},
      {"n200000000", Sizes(20, 10000000), 1.0, Size::large},
  };
  for (const NormRow& row : norms) {
    double count = 0;
    for (const int64_t size : row.sizes) count += static_cast<double>(size);
    cases.push_back({.name = "global_norm/" + row.name,
                     .op_class = OpClass::reduction,
                     .work = {Work::Unit::elements, count},
                     .dtypes = both_dtypes(),
                     .size = row.size,
                     .make = [row] { return global_norm_example(row.sizes, row.max_norm); }});
  }
}

}  // namespace moebius::ops::cases
