#include "ops/cases/check.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/concat.h"
#include "base/parallel.h"
#include "ops/cases/run.h"

namespace moebius::ops::cases {
namespace {

at::Tensor on_host(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU);
}

std::string coordinate_of(int64_t flat, at::IntArrayRef sizes) {
  std::vector<int64_t> index(sizes.size());
  for (size_t dim = sizes.size(); dim-- > 0; flat /= sizes[dim]) index[dim] = flat % sizes[dim];
  std::string text = "[";
  for (size_t dim = 0; dim < index.size(); ++dim) text += concat(dim == 0 ? "" : ", ", index[dim]);
  return text + "]";
}

// Coordinate and both values of the element that differs most; of the first that differs when `first`.
std::string difference(const at::Tensor& got, const at::Tensor& want, bool first) {
  const at::Tensor a = got.to(at::kDouble).contiguous().view(-1),
                   b = want.to(at::kDouble).contiguous().view(-1);
  const auto* x = a.const_data_ptr<double>();
  const auto* y = b.const_data_ptr<double>();
  int64_t worst = 0;
  double largest = -1;
  for (int64_t i = 0; i < a.numel(); ++i) {
    const double apart =
        std::isnan(x[i] - y[i]) ? std::numeric_limits<double>::infinity() : std::abs(x[i] - y[i]);
    if (apart > largest) {
      largest = apart;
      worst = i;
      if (first && apart > 0) break;
    }
  }
  return concat("at ", coordinate_of(worst, got.sizes()), ": ", x[worst], ", reference ", y[worst]);
}

class Comparison {
 public:
  Comparison(CheckResult& result, double tolerance) : result_(result) { result_.tolerance = tolerance; }

  void close(const std::string& name, const at::Tensor& got, const at::Tensor& want) {
    const double error = normalised_error(got, want);
    if (error > result_.error || result_.where.empty()) {
      result_.error = error;
      result_.where = name;
    }
    if (error <= result_.tolerance) return;
    if (got.sizes() != want.sizes()) return shapes_differ(name, got, want);
    problem(name, ": error ", error, " above ", result_.tolerance, "; worst ", difference(got, want, false));
  }

  void equal(const std::string& name, const at::Tensor& got, const at::Tensor& want) {
    if (got.sizes() != want.sizes()) return shapes_differ(name, got, want);
    if (at::equal(got.to(at::kDouble), want.to(at::kDouble))) return;
    problem(name, " differs first ", difference(got, want, true));
  }

  template <class... Parts>
  void problem(const Parts&... parts) {
    result_.problems.push_back(concat(parts...));
  }

 private:
  void shapes_differ(const std::string& name, const at::Tensor& got, const at::Tensor& want) {
    problem(name, " has shape ", got.sizes(), ", the reference ", want.sizes());
  }

  CheckResult& result_;
};

// Small tensors are quicker on one thread, above all on a busy machine.
class ThreadsOfReference {
 public:
  explicit ThreadsOfReference(Size size) {
    if (size == Size::small) set_num_threads(1);
  }
  ~ThreadsOfReference() { set_num_threads(before_); }
  ThreadsOfReference(const ThreadsOfReference&) = delete;
  ThreadsOfReference& operator=(const ThreadsOfReference&) = delete;

 private:
  int before_ = num_threads();
};

// Gradients of the differentiable inputs that the differentiable outputs lead to; undefined elsewhere.
Tensors gradients(const Outputs& outputs, const Tensors& inputs, const Tensors& output_grads) {
  Tensors roots, grads, leaves;
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].value.requires_grad()) continue;
    roots.push_back(outputs[i].value);
    grads.push_back(output_grads[i].to(outputs[i].value.options()));
  }
  for (const at::Tensor& input : inputs)
    if (input.requires_grad()) leaves.push_back(input);
  Tensors all(inputs.size());
  if (roots.empty() || leaves.empty()) return all;
  const Tensors found = torch::autograd::grad(roots, leaves, grads, {}, false, /*allow_unused=*/true);
  for (size_t i = 0, leaf = 0; i < inputs.size(); ++i)
    if (inputs[i].requires_grad()) all[i] = found[leaf++];
  return all;
}

// A random gradient for every output, rounded to what the op's output can hold.
Tensors random_gradients(const Outputs& outputs) {
  Tensors grads;
  for (const Output& output : outputs) {
    const at::Tensor& value = output.value;
    grads.push_back(value.is_floating_point()
                        ? at::randn(value.sizes(), at::kDouble).to(value.scalar_type()).to(at::kDouble)
                        : at::Tensor());
  }
  return grads;
}

// Sum over differentiable outputs of output times its gradient: what the gradients are gradients of.
double weighted_sum(const Outputs& outputs, const Tensors& grads, const std::vector<bool>& used) {
  double sum = 0;
  for (size_t i = 0; i < outputs.size(); ++i)
    if (used[i]) sum += outputs[i].value.mul(grads[i]).sum().item<double>();
  return sum;
}

}  // namespace

double normalised_error(const at::Tensor& got, const at::Tensor& want) {
  if (got.sizes() != want.sizes()) return std::numeric_limits<double>::infinity();
  const double size = want.to(at::kDouble).norm().item<double>();
  const double apart = (got.to(at::kDouble) - want.to(at::kDouble)).norm().item<double>();
  if (std::isnan(apart)) return std::numeric_limits<double>::infinity();
  return size > 0 ? apart / size : apart;
}

CheckResult check_case(const OpCase& op_case, at::ScalarType dtype, at::Device device) {
  CheckResult result;
  Comparison compare(result, tolerance(op_case.op_class, dtype));
  const Example example = example_of(op_case);
  const Tensors inputs = device_inputs(example, dtype, device);
  const Outputs got = example.op(inputs);
  const Tensors output_grads = random_gradients(got);
  const Tensors got_grads = gradients(got, inputs, output_grads);

  const ThreadsOfReference threads(op_case.size);
  const Tensors exact = exact_inputs(example, dtype);
  const Outputs want = example.reference(exact);
  MOEBIUS_CHECK_EQ(got.size(), want.size(), "outputs of ", op_case.name);
  const Tensors want_grads = gradients(want, exact, output_grads);
  for (size_t i = 0; i < want.size(); ++i) {
    const at::Tensor value = on_host(got[i].value), reference = want[i].value.detach();
    if (want[i].exact) {
      compare.equal(want[i].name, value, reference);
    } else {
      compare.close(want[i].name, value, reference);
    }
    if (got[i].value.requires_grad() != want[i].value.requires_grad())
      compare.problem(want[i].name, got[i].value.requires_grad() ? " has" : " has no",
                      " gradient, unlike the reference");
  }
  for (size_t i = 0; i < want_grads.size(); ++i) {
    const std::string name = concat("gradient of ", example.inputs[i].name);
    if (got_grads[i].defined() != want_grads[i].defined()) {
      compare.problem(name, got_grads[i].defined() ? " exists" : " is missing", ", unlike the reference's");
    } else if (want_grads[i].defined()) {
      compare.close(name, on_host(got_grads[i]), want_grads[i]);
    }
  }
  return result;
}

CheckResult check_reference(const OpCase& op_case) {
  constexpr double kStep = 1e-6;
  constexpr int kDirections = 3;
  CheckResult result;
  Comparison compare(result, finite_difference_tolerance());
  const ThreadsOfReference threads(op_case.size);
  const Example example = example_of(op_case);
  const Tensors inputs = exact_inputs(example, at::kFloat);
  const Outputs outputs = example.reference(inputs);
  std::vector<bool> used;
  for (const Output& output : outputs) used.push_back(output.value.requires_grad());
  const Tensors output_grads = random_gradients(outputs);
  const Tensors grads = gradients(outputs, inputs, output_grads);
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!grads[i].defined() || inputs[i].numel() == 0) continue;
    at::Tensor slopes = at::empty({kDirections}, at::kDouble), expected = at::empty_like(slopes);
    for (int direction = 0; direction < kDirections; ++direction) {
      const at::Tensor along = at::randn_like(inputs[i]);
      double sums[2];
      for (const int side : {0, 1}) {
        Tensors moved = inputs;
        moved[i] = inputs[i] + along * (side == 0 ? -kStep : kStep);
        sums[side] = weighted_sum(example.reference(moved), output_grads, used);
      }
      slopes[direction] = (sums[1] - sums[0]) / (2 * kStep);
      expected[direction] = (along * grads[i]).sum();
    }
    // Measured by the gradient itself, for directions that happen to lie across it.
    const double apart = (slopes - expected).norm().item<double>();
    const double error = apart / std::max(grads[i].norm().item<double>(), 1e-3);
    if (error > result.error || result.where.empty()) {
      result.error = error;
      result.where = example.inputs[i].name;
    }
    if (!(error <= result.tolerance))
      compare.problem("gradient of ", example.inputs[i].name, " in the reference: ", expected, " along ",
                      kDirections, " directions, finite differences ", slopes);
  }
  return result;
}

}  // namespace moebius::ops::cases
