#include <cmath>

#include "kernels/cuda/kernels.h"
#include "kernels/cuda/test_device.h"

namespace moebius::kernels::cuda {
namespace {

struct Reference {
  std::vector<double> out, inv, grad_in, grad_q, grad_k;
};

Reference reference(const RopeShape& s, const std::vector<double>& x, const std::vector<double>& qw,
                    const std::vector<double>& kw, const std::vector<int32_t>& positions,
                    const std::vector<double>& table, const std::vector<double>& grad) {
  const size_t dim = static_cast<size_t>(s.head_dim), half = dim / 2,
               heads = static_cast<size_t>(s.num_heads), kv = static_cast<size_t>(s.num_kv_heads),
               width = (heads + 2 * kv) * dim;
  const bool norm = s.norm != QkNorm::none, full = s.norm == QkNorm::full;
  Reference ref{
      x, {}, grad, std::vector<double>(full ? heads * dim : dim), std::vector<double>(full ? kv * dim : dim)};
  for (size_t t = 0; t < static_cast<size_t>(s.num_tokens); ++t) {
    const double* angles = table.data() + static_cast<size_t>(positions[t]) * dim;
    for (size_t first = 0; first < heads + kv;) {
      const bool query = first < heads;
      const size_t count = full ? (query ? heads : kv) : 1, n = count * dim, at = t * width + first * dim;
      const std::vector<double>& weight = query ? qw : kw;
      double square = 0.0, dot = 0.0;
      for (size_t i = 0; i < n; ++i) square += x[at + i] * x[at + i];
      const double inv = norm ? 1.0 / std::sqrt(square / static_cast<double>(n) + s.eps) : 1.0;
      if (norm) ref.inv.push_back(inv);
      std::vector<double> y(n), g(n);
      for (size_t i = 0; i < n; ++i) y[i] = norm ? x[at + i] * inv * weight[i] : x[at + i];
      for (size_t h = 0; h < count; ++h) {
        for (size_t i = 0; i < half; ++i) {
          const size_t a = h * dim + i, b = a + half;
          ref.out[at + a] = y[a] * angles[i] - y[b] * angles[half + i];
          ref.out[at + b] = y[b] * angles[i] + y[a] * angles[half + i];
          g[a] = grad[at + a] * angles[i] + grad[at + b] * angles[half + i];
          g[b] = grad[at + b] * angles[i] - grad[at + a] * angles[half + i];
        }
      }
      if (norm) {
        for (size_t i = 0; i < n; ++i) {
          dot += g[i] * weight[i] * x[at + i] * inv;
          (query ? ref.grad_q : ref.grad_k)[i] += g[i] * x[at + i] * inv;
        }
        for (size_t i = 0; i < n; ++i)
          g[i] = inv * (g[i] * weight[i] - x[at + i] * inv * dot / static_cast<double>(n));
      }
      for (size_t i = 0; i < n; ++i) ref.grad_in[at + i] = g[i];
      first += count;
    }
  }
  return ref;
}

void check_rope(DType dtype, int64_t offset, int64_t tokens, int64_t heads, int64_t kv, int64_t dim,
                QkNorm norm) {
  SCOPED_TRACE(std::to_string(heads) + "/" + std::to_string(kv) + " heads of " + std::to_string(dim) +
               ", norm " + std::to_string(static_cast<int>(norm)));
  const RopeShape shape{tokens, heads, kv, dim, norm, 1e-5f, dtype};
  const int64_t width = (heads + 2 * kv) * dim, q_width = norm == QkNorm::full ? heads * dim : dim,
                k_width = norm == QkNorm::full ? kv * dim : dim;
  constexpr int64_t kPositions = 50;
  std::vector<double> table(static_cast<size_t>(kPositions * dim));
  for (int64_t p = 0; p < kPositions; ++p) {
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double angle = static_cast<double>(p) *
                           std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
      table[static_cast<size_t>(p * dim + i)] = std::cos(angle);
      table[static_cast<size_t>(p * dim + dim / 2 + i)] = std::sin(angle);
    }
  }
  std::vector<int32_t> positions;
  for (int64_t t = 0; t < tokens; ++t) positions.push_back(static_cast<int32_t>(t * 13 % kPositions));
  const Integers<int32_t> device_positions(positions);
  const Values x = Values::normal(dtype, tokens * width, 1, 1.0, offset),
               grad = Values::normal(dtype, tokens * width, 2, 1.0, offset);
  const Values qw = Values::normal(dtype, q_width, 3, 1.0, offset),
               kw = Values::normal(dtype, k_width, 4, 1.0, offset);
  const Values cos_sin(DType::f32, table), out(dtype, tokens * width, offset),
      grad_in(dtype, tokens * width, offset);
  const bool normed = norm != QkNorm::none;
  const Values inv(DType::f32, tokens * shape.num_norm_groups()), grad_q(DType::f32, q_width),
      grad_k(DType::f32, k_width);
  const Reference ref =
      reference(shape, x.start(), qw.start(), kw.start(), positions, cos_sin.start(), grad.start());
  rope_forward({shape, x.data(), out.data(), normed ? qw.data() : nullptr, normed ? kw.data() : nullptr,
                normed ? inv.floats() : nullptr, device_positions.data(), cos_sin.floats()},
               nullptr);
  expect_close("out", out.host(), ref.out, dtype);
  if (normed) expect_close("inv_rms", inv.host(), ref.inv, DType::f32);
  rope_backward(
      {shape, normed ? x.data() : nullptr, grad.data(), grad_in.data(), normed ? qw.data() : nullptr,
       normed ? kw.data() : nullptr, inv.floats(), normed ? grad_q.floats() : nullptr,
       normed ? grad_k.floats() : nullptr, device_positions.data(), cos_sin.floats()},
      nullptr);
  expect_close("grad_in", grad_in.host(), ref.grad_in, dtype);
  if (normed) {
    expect_close("grad_q_weight", grad_q.host(), ref.grad_q, DType::f32);
    expect_close("grad_k_weight", grad_k.host(), ref.grad_k, DType::f32);
  }
  // In place.
  rope_backward({shape, normed ? x.data() : nullptr, grad.data(), grad.data(), normed ? qw.data() : nullptr,
                 normed ? kw.data() : nullptr, inv.floats(), normed ? grad_q.floats() : nullptr,
                 normed ? grad_k.floats() : nullptr, device_positions.data(), cos_sin.floats()},
                nullptr);
  expect_close("grad_in in place", grad.host(), ref.grad_in, dtype);
}

TEST(CudaRope, agrees_with_double_precision) {
  MOEBIUS_NEEDS_DEVICE();
  for_dtypes([](DType dtype, int64_t offset) {
    for (const QkNorm norm : {QkNorm::none, QkNorm::head, QkNorm::full}) {
      check_rope(dtype, offset, 31, 4, 2, 32, norm);
      check_rope(dtype, offset, 17, 3, 1, 48, norm);
      check_rope(dtype, offset, 5, 2, 2, 6, norm);
      if (offset != 0) continue;  // a warp holds unaligned heads up to 64 elements
      check_rope(dtype, offset, 70, 32, 8, 128, norm);
      check_rope(dtype, offset, 300, 16, 16, 128, norm);
      check_rope(dtype, offset, 9, 32, 4, 128, norm);
      check_rope(dtype, offset, 9, 6, 6, 64, norm);
      check_rope(dtype, offset, 9, 4, 1, 256, norm);
    }
  });
}

}  // namespace
}  // namespace moebius::kernels::cuda
