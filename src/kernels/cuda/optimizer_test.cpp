#include <cmath>
#include <limits>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

struct Entry {
  Values param, master, grad, m, v;
  AdamWTensor tensor;
};

std::vector<double> squares(std::vector<double> x) {
  for (double& value : x) value *= value;
  return x;
}

std::vector<Entry> entries(int64_t offset) {
  std::vector<Entry> all;
  uint64_t seed = 1;
  for (const DType param : {DType::f32, DType::bf16}) {
    for (const DType grad : {DType::f32, DType::bf16}) {
      for (const DType state : {DType::f32, DType::bf16}) {
        for (const bool master : {false, true}) {
          for (const int64_t size : {1, 77, 16384, 40003}) {
            Entry e;
            e.param = Values::normal(param, size, ++seed, 0.5, offset);
            if (master) e.master = Values::normal(DType::f32, size, ++seed, 0.5, offset);
            e.grad = Values::normal(grad, size, ++seed, 0.1, offset);
            e.m = Values::normal(state, size, ++seed, 0.1, offset);
            e.v = Values(state, squares(Values::normal(DType::f32, size, ++seed, 0.1).start()), offset);
            e.tensor = {e.param.data(), master ? e.master.floats() : nullptr,
                        e.grad.data(),  e.m.data(),
                        e.v.data(),     size,
                        1e-2f,          master ? 0.1f : 0.0f,
                        param,          grad,
                        state};
            all.push_back(std::move(e));
          }
        }
      }
    }
  }
  return all;
}

void check_adamw(int64_t offset) {
  const std::vector<Entry> all = entries(offset);
  std::vector<AdamWTensor> list;
  for (int copy = 0; copy < 1; ++copy) {
    for (const Entry& e : all) list.push_back(e.tensor);
  }
  const Values scale(DType::f32, std::vector<double>{0.5}),
      nan(DType::f32, std::vector<double>{std::numeric_limits<double>::quiet_NaN()});
  AdamWArgs args{list, 0.9f, 0.95f, 1e-8f, 0.271f, 0.142625f, nan.floats()};
  adamw(args, nullptr);
  for (const Entry& e : all) {
    EXPECT_EQ(e.param.host(), e.param.start()) << "a step that is not finite must change nothing";
    EXPECT_EQ(e.m.host(), e.m.start());
  }
  args.grad_scale = scale.floats();
  adamw(args, nullptr);
  for (const Entry& e : all) {
    SCOPED_TRACE("size " + std::to_string(e.tensor.size));
    const size_t n = static_cast<size_t>(e.tensor.size);
    const bool master = e.tensor.master != nullptr;
    std::vector<double> w(n), m(n), v(n);
    for (size_t i = 0; i < n; ++i) {
      const double g = e.grad.start()[i] * 0.5, lr = e.tensor.lr;
      m[i] = args.beta1 * e.m.start()[i] + (1.0 - args.beta1) * g;
      v[i] = args.beta2 * e.v.start()[i] + (1.0 - args.beta2) * g * g;
      const double start = master ? e.master.start()[i] : e.param.start()[i];
      w[i] = start - lr * e.tensor.weight_decay * start -
             lr * (m[i] / args.correction1) / (std::sqrt(v[i] / args.correction2) + args.eps);
    }
    expect_close("m", e.m.host(), m, e.tensor.state_dtype);
    expect_close("v", e.v.host(), v, e.tensor.state_dtype);
    expect_close("param", e.param.host(), w, e.tensor.param_dtype);
    if (master) expect_close("master", e.master.host(), w, DType::f32);
  }
}

TEST(CudaOptimizer, adamw_agrees_with_double_precision_for_every_combination_of_dtypes) {
  MOEBIUS_NEEDS_DEVICE();
  check_adamw(0);
  check_adamw(1);
}

TEST(CudaOptimizer, adamw_takes_more_tensors_than_a_launch_holds) {
  MOEBIUS_NEEDS_DEVICE();
  constexpr int64_t kTensors = 700, kSize = 33;
  const Values param = Values::normal(DType::f32, kTensors * kSize, 1),
               grad = Values::normal(DType::f32, kTensors * kSize, 2);
  const Values m(DType::f32, std::vector<double>(kTensors * kSize)),
      v(DType::f32, std::vector<double>(kTensors * kSize));
  const Values scale(DType::f32, std::vector<double>{1.0});
  std::vector<AdamWTensor> list;
  for (int64_t t = 0; t < kTensors; ++t) {
    const int64_t at = t * kSize;
    list.push_back({param.floats() + at, nullptr, grad.floats() + at, m.floats() + at, v.floats() + at, kSize,
                    0.1f, 0.0f, DType::f32, DType::f32, DType::f32});
  }
  adamw({list, 0.9f, 0.999f, 1e-8f, 0.1f, 0.001f, scale.floats()}, nullptr);
  std::vector<double> expected = param.start();
  for (size_t i = 0; i < expected.size(); ++i) {
    const double g = grad.start()[i];
    expected[i] -= 0.1 * g / (std::abs(g) + 1e-8);
  }
  expect_close("param", param.host(), expected, DType::bf16);  // the first step of AdamW moves by the sign
}

TEST(CudaOptimizer, sum_of_squares_agrees_with_double_precision_and_repeats_exactly) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    std::vector<Values> all;
    std::vector<GradTensor> list;
    double expected = 0.0;
    for (int64_t i = 0; i < 260; ++i) {
      all.push_back(
          Values::normal(dtype, i == 7 ? 300001 : 1 + 37 * i, static_cast<uint64_t>(i), 1.0, offset));
      list.push_back({all.back().data(), all.back().count(), dtype});
      for (const double x : all.back().start()) expected += x * x;
    }
    const Values out(DType::f32, 1), again(DType::f32, 1);
    sum_squares({list, out.floats()}, nullptr);
    sum_squares({list, again.floats()}, nullptr);
    expect_close("sum", out.host(), {expected}, DType::f32);
    EXPECT_EQ(out.host(), again.host());
  });
}

TEST(CudaOptimizer, one_infinite_element_makes_the_sum_not_finite) {
  MOEBIUS_NEEDS_DEVICE();
  std::vector<double> values(5000, 1.0);
  values[4321] = std::numeric_limits<double>::infinity();
  const Values bad(DType::bf16, values), out(DType::f32, 1);
  const std::vector<GradTensor> list{{bad.data(), bad.count(), DType::bf16}};
  sum_squares({list, out.floats()}, nullptr);
  EXPECT_FALSE(std::isfinite(out.host()[0]));
  sum_squares({{}, out.floats()}, nullptr);
  EXPECT_EQ(out.host()[0], 0.0);
}

}  // namespace
}  // namespace moebius::kernels::cuda
