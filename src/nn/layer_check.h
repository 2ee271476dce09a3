// For tests: layers in fp32 beside a plain computation in double precision, values and all gradients.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "nn/decoder.h"
#include "nn/param.h"
#include "ops/attention.h"

namespace moebius::nn {

// A parameter table with random values (norms around 1), and the same values as leaves in double precision.
class CheckedParams {
 public:
  ParamTable table;

  // After the layer has declared its parameters.
  void fill();

  bool has(const std::string& name) const { return exact_.count(name) > 0; }
  const at::Tensor& operator[](const std::string& name) const { return exact_.at(name); }

  // Compares outputs, and under one random gradient the gradients of x and of every parameter.
  void expect_close(const at::Tensor& y, const at::Tensor& y_exact, const at::Tensor& x,
                    const at::Tensor& x_exact);

  static void close(const std::string& name, const at::Tensor& got, const at::Tensor& want);

 private:
  std::map<std::string, at::Tensor> exact_;
};

// Input of a layer in both precisions, with gradients.
struct CheckedInput {
  explicit CheckedInput(std::vector<int64_t> sizes);
  at::Tensor x, exact;
};

ops::Segments segments_of(const std::vector<int32_t>& lengths);
at::Tensor positions_of(const std::vector<int32_t>& lengths);

// Documents of the given lengths: token t of all is (token_step * t + 3) mod vocab, its target (11 t +
// target_shift) mod vocab.
TokenBatch document_batch(const std::vector<int32_t>& lengths, int64_t vocab, int64_t token_step = 7,
                          int64_t target_shift = 5);

// Base of the rotary frequencies in these tests.
inline constexpr double kCheckedTheta = 100.0;

// The first 2 * angles.size(1) channels of each head, element i turned with element i + angles.size(1).
at::Tensor plain_rotation(const at::Tensor& x_THd, const at::Tensor& angles_TP);

// Angles p * theta^(-2i / dim) of positions, in double precision.
at::Tensor plain_angles(const at::Tensor& positions_T, int64_t dim, double theta);

// Scores' factor, tokens seen (0: all) and sinks (undefined: none).
struct PlainScores {
  double scale;
  int64_t window = 0;
  at::Tensor sinks_H = {};
};

// (T, H * e): document by document and head by head.
at::Tensor plain_attention(const at::Tensor& q_THd, const at::Tensor& k_TGd, const at::Tensor& v_TGe,
                           const std::vector<int32_t>& lengths, const PlainScores& scores);

at::Tensor plain_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

}  // namespace moebius::nn
