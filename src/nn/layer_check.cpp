#include "nn/layer_check.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"

namespace moebius::nn {

void CheckedParams::fill() {
  at::manual_seed(7);
  table.allocate(at::kFloat, at::kCPU);
  const at::NoGradGuard no_grad;
  for (Param& param : table.params()) {
    const double width = static_cast<double>(param.spec.dims.back());
    const double std = param.spec.dims.size() > 1 ? 1 / std::sqrt(width) : 0.5;
    param.value.copy_(at::randn(param.spec.dims) * std + (param.spec.klass == ParamClass::norm ? 1 : 0));
  }
  for (Param& param : table.params())
    exact_[param.spec.name] = param.value.detach().to(at::kDouble).set_requires_grad(true);
}

void CheckedParams::expect_close(const at::Tensor& y, const at::Tensor& y_exact, const at::Tensor& x,
                                 const at::Tensor& x_exact) {
  close("output", y.detach(), y_exact.detach());
  const at::Tensor grad = at::randn(y.sizes());
  y.backward(grad);
  y_exact.backward(grad.to(at::kDouble));
  close("gradient of x", x.grad(), x_exact.grad());
  for (const Param& param : table.params())
    close("gradient of " + param.spec.name, param.value.grad(), exact_.at(param.spec.name).grad());
}

void CheckedParams::close(const std::string& name, const at::Tensor& got, const at::Tensor& want) {
  ASSERT_TRUE(got.defined() && want.defined()) << name;
  EXPECT_LE(ops::cases::normalised_error(got, want),
            ops::cases::tolerance(ops::cases::OpClass::layer, got.scalar_type()))
      << name;
}

CheckedInput::CheckedInput(std::vector<int64_t> sizes) {
  x = at::randn(sizes);
  exact = x.to(at::kDouble).set_requires_grad(true);
  x.set_requires_grad(true);
}

ops::Segments segments_of(const std::vector<int32_t>& lengths) {
  ops::Segments segments;
  segments.cu_seqlens = {0};
  for (const int32_t length : lengths) {
    segments.cu_seqlens.push_back(segments.cu_seqlens.back() + length);
    segments.max_length = std::max<int64_t>(segments.max_length, length);
  }
  return segments;
}

at::Tensor positions_of(const std::vector<int32_t>& lengths) {
  std::vector<at::Tensor> parts;
  for (const int32_t length : lengths) parts.push_back(at::arange(length, at::kInt));
  return at::cat(parts);
}

TokenBatch document_batch(const std::vector<int32_t>& lengths, int64_t vocab, int64_t token_step,
                          int64_t target_shift) {
  TokenBatch batch;
  batch.documents = segments_of(lengths);
  batch.max_position = batch.documents.max_length;
  batch.positions_T = positions_of(lengths);
  const at::Tensor number_T = at::arange(batch.positions_T.size(0), at::kLong);
  batch.tokens_T = (number_T * token_step + 3).remainder(vocab);
  batch.targets_T = (number_T * 11 + target_shift).remainder(vocab);
  return batch;
}

at::Tensor plain_rotation(const at::Tensor& x_THd, const at::Tensor& angles_TP) {
  const int64_t half = angles_TP.size(1);
  const at::Tensor a = x_THd.slice(2, 0, half), b = x_THd.slice(2, half, 2 * half);
  const at::Tensor cos = angles_TP.cos().unsqueeze(1), sin = angles_TP.sin().unsqueeze(1);
  return at::cat({a * cos - b * sin, b * cos + a * sin, x_THd.slice(2, 2 * half)}, 2);
}

at::Tensor plain_angles(const at::Tensor& positions_T, int64_t dim, double theta) {
  const at::Tensor exponent = at::arange(dim / 2, at::kDouble) * (-2.0 / static_cast<double>(dim));
  return at::outer(positions_T.to(at::kDouble), at::pow(theta, exponent));
}

at::Tensor plain_attention(const at::Tensor& q_THd, const at::Tensor& k_TGd, const at::Tensor& v_TGe,
                           const std::vector<int32_t>& lengths, const PlainScores& scores) {
  std::vector<at::Tensor> documents;
  int64_t begin = 0;
  const int64_t shared = q_THd.size(1) / k_TGd.size(1);
  for (const int32_t length : lengths) {
    std::vector<at::Tensor> heads;
    for (int64_t h = 0; h < q_THd.size(1); ++h) {
      const at::Tensor q = q_THd.slice(0, begin, begin + length).select(1, h),
                       k = k_TGd.slice(0, begin, begin + length).select(1, h / shared),
                       v = v_TGe.slice(0, begin, begin + length).select(1, h / shared);
      const at::Tensor distance = at::arange(length).unsqueeze(1) - at::arange(length);
      at::Tensor seen = distance.ge(0);
      if (scores.window > 0) seen = seen.logical_and(distance.lt(scores.window));
      const at::Tensor e = (at::mm(q, k.t()) * scores.scale).exp() * seen;
      at::Tensor sum = e.sum(1, true);
      if (scores.sinks_H.defined()) sum = sum + scores.sinks_H[h].exp();
      heads.push_back(at::mm(e / sum, v));
    }
    documents.push_back(at::cat(heads, 1));
    begin += length;
  }
  return at::cat(documents);
}

at::Tensor plain_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x / (x.square().mean(-1, true) + eps).sqrt() * weight;
}

}  // namespace moebius::nn
