// Router scores, selection and weights, and their backward (kernels/api/route.h): a warp per token, its
// experts in registers (expert e in lane e % 32). Selection takes the largest key K times: two warp-wide
// integer reductions each.
#include <cmath>

#include "base/check.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr float kTiny = 1e-20f;  // keeps a sum of vanishing sigmoids from being divided by
constexpr unsigned kAll = 0xffffffffu;

struct Options {
  int64_t num_tokens;
  int num_experts, top_k;
  bool softmax, after, normalize;  // after: softmax over the chosen logits
  float scale;
};

// A float as an unsigned integer of the same order; 0 is below all of them.
__device__ __forceinline__ unsigned ordered(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);  // + 0: one zero
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float sigmoid_of(float x) {
  return 1.0f / (1.0f + expf(-x));
}

// Softmax over the values of lanes below top_k; 0 in the others.
__device__ __forceinline__ float softmax_chosen(float logit, bool chosen) {
  const float max = max_lanes(chosen ? logit : -INFINITY);
  const float e = chosen ? expf(logit - max) : 0.0f;
  return e / sum_lanes(e);
}

template <int C>  // experts per lane
__global__ void __launch_bounds__(32 * kWarps)
    route_forward_kernel(const float* __restrict__ logits,  // (T, E)
                         const float* __restrict__ bias,    // (E) or null
                         float* __restrict__ probs,         // (T, E) out
                         int32_t* __restrict__ experts,     // (T, K) out
                         float* __restrict__ weights,       // (T, K) out
                         float* __restrict__ lse,           // (T) out
                         Options o) {
  const int lane = threadIdx.x % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= o.num_tokens) return;
  const float* mine = logits + token * o.num_experts;
  float logit[C], score[C];
  float max = -INFINITY;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int e = c * 32 + lane;
    logit[c] = e < o.num_experts ? mine[e] : -INFINITY;
    max = fmaxf(max, logit[c]);
  }
  max = max_lanes(max);
  float sum = 0.0f;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    score[c] = c * 32 + lane < o.num_experts ? expf(logit[c] - max) : 0.0f;
    sum += score[c];
  }
  sum = sum_lanes(sum);
  if (lane == 0) lse[token] = max + logf(sum);
  float prob_factor = 1.0f / sum;
  if (o.softmax) {
#pragma unroll
    for (int c = 0; c < C; ++c) score[c] *= prob_factor;
    prob_factor = 1.0f;
  } else {
    sum = 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      score[c] = c * 32 + lane < o.num_experts ? sigmoid_of(logit[c]) : 0.0f;
      sum += score[c];
    }
    prob_factor = 1.0f / (sum_lanes(sum) + kTiny);
  }
  unsigned key[C];
  constexpr float kLowest = -3.402823466e38f;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int e = c * 32 + lane;
    key[c] = 0;
    if (e < o.num_experts) {
      probs[token * o.num_experts + e] = score[c] * prob_factor;
      const float k = bias == nullptr ? logit[c] : score[c] + bias[e];
      key[c] = ordered(k > kLowest ? k : kLowest);
    }
    if (o.after) score[c] = logit[c];  // from here on: what the weights are made of
  }

  int chosen = 0;
  float value = 0.0f;
  for (int k = 0; k < o.top_k; ++k) {
    unsigned best = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) best = umax(best, key[c]);
    best = __reduce_max_sync(kAll, best);
    unsigned index = 0xffffffffu;  // lowest expert with that key
#pragma unroll
    for (int c = C - 1; c >= 0; --c) {
      if (key[c] == best) index = c * 32 + lane;
    }
    index = __reduce_min_sync(kAll, index);
    float found = 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (index == static_cast<unsigned>(c * 32 + lane)) {
        found = score[c];
        key[c] = 0;
      }
    }
    found = __shfl_sync(kAll, found, index % 32);
    if (lane == k) {
      chosen = static_cast<int>(index);
      value = found;
    }
  }
  const bool used = lane < o.top_k;
  if (o.after) {
    value = softmax_chosen(value, used) * o.scale;
  } else {
    const float total = sum_lanes(used ? value : 0.0f);
    value *= o.normalize ? o.scale / (total + kTiny) : o.scale;
  }
  if (used) {
    experts[token * o.top_k + lane] = chosen;
    weights[token * o.top_k + lane] = value;
  }
}

template <int C>
__global__ void __launch_bounds__(32 * kWarps)
    route_backward_kernel(const float* __restrict__ logits,        // (T, E)
                          const float* __restrict__ probs,         // (T, E)
                          const int32_t* __restrict__ experts,     // (T, K)
                          const float* __restrict__ lse,           // (T)
                          const float* __restrict__ grad_weights,  // (T, K)
                          const float* __restrict__ grad_probs,    // (S, E) or null
                          const int32_t* __restrict__ segments,    // (T) or null
                          const float* __restrict__ grad_lse_sq,   // (1) or null
                          float* __restrict__ grad_logits,         // (T, E) out
                          Options o) {
  const int lane = threadIdx.x % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  if (token >= o.num_tokens) return;
  const int64_t begin = token * o.num_experts;
  const float lse_pull = grad_lse_sq == nullptr ? 0.0f : 2.0f * *grad_lse_sq * lse[token];

  // Gradient of the chosen experts' scores, or of their logits when the softmax comes after the choice; lane
  // k has that of the k-th.
  const bool used = lane < o.top_k;
  const int chosen = used ? experts[token * o.top_k + lane] : -1;
  const float grad_weight = used ? grad_weights[token * o.top_k + lane] : 0.0f;
  float value = 0.0f;
  if (o.after) {
    value = softmax_chosen(used ? logits[begin + chosen] : 0.0f, used);
  } else if (used) {
    value = o.softmax ? probs[begin + chosen] : sigmoid_of(logits[begin + chosen]);
  }
  float grad_value = o.scale * grad_weight;
  if (o.normalize || o.after) {
    const float total = sum_lanes(value) + kTiny;
    const float dot = sum_lanes(grad_weight * value);
    grad_value = o.scale / total * (grad_weight - dot / total);
  }

  float p[C], grad[C], score[C];  // score: sigmoid scores only
  float score_sum = 1.0f;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int e = c * 32 + lane;
    p[c] = e < o.num_experts ? probs[begin + e] : 0.0f;
    grad[c] = 0.0f;
    score[c] = 0.0f;
  }
  if (!o.softmax) {
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int e = c * 32 + lane;
      if (e < o.num_experts) score[c] = sigmoid_of(logits[begin + e]);
      sum += score[c];
    }
    score_sum = sum_lanes(sum) + kTiny;
  }
  if (grad_probs != nullptr) {
    const float* row =
        grad_probs + static_cast<int64_t>(segments == nullptr ? 0 : segments[token]) * o.num_experts;
    float dot = 0.0f;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int e = c * 32 + lane;
      if (e < o.num_experts) grad[c] = row[e];
      dot += p[c] * grad[c];
    }
    if (!o.softmax) {  // probs = scores / sum of scores
      dot = sum_lanes(dot);
#pragma unroll
      for (int c = 0; c < C; ++c) grad[c] = (grad[c] - dot) / score_sum;
    }
  }
  if (!o.after) {
    for (int k = 0; k < o.top_k; ++k) {
      const int e = __shfl_sync(kAll, chosen, k);
      const float g = __shfl_sync(kAll, grad_value, k);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (e == c * 32 + lane) grad[c] += g;
      }
    }
  }
  float pull = 0.0f;
  if (o.softmax) {
#pragma unroll
    for (int c = 0; c < C; ++c) pull += p[c] * grad[c];
    pull = sum_lanes(pull) - lse_pull;
  }
  float out[C];
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int e = c * 32 + lane;
    if (o.softmax) {
      out[c] = p[c] * (grad[c] - pull);
    } else {
      out[c] = grad[c] * (score[c] - score[c] * score[c]);
      if (lse_pull != 0.0f && e < o.num_experts) out[c] += expf(logits[begin + e] - lse[token]) * lse_pull;
    }
  }
  if (o.after) {
    const float grad_logit = grad_value * value;
    for (int k = 0; k < o.top_k; ++k) {
      const int e = __shfl_sync(kAll, chosen, k);
      const float g = __shfl_sync(kAll, grad_logit, k);
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (e == c * 32 + lane) out[c] += g;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    const int e = c * 32 + lane;
    if (e < o.num_experts) grad_logits[begin + e] = out[c];
  }
}

Options options_of(const RouteOptions& o) {
  MOEBIUS_CHECK(o.num_experts >= 1 && o.num_experts <= 1024, "experts: ", o.num_experts);
  MOEBIUS_CHECK(o.top_k >= 1 && o.top_k <= 32 && o.top_k <= o.num_experts, "top_k: ", o.top_k,
                ", experts: ", o.num_experts);
  const bool softmax = o.score == Score::softmax;
  return {o.num_tokens, static_cast<int>(o.num_experts), static_cast<int>(o.top_k),
          softmax,      softmax && o.softmax_after_topk, o.normalize,
          o.scale};
}

template <class Body>
void with_experts_per_lane(int64_t num_experts, const Body& body) {
  if (num_experts <= 32) return body(Constant<1>{});
  if (num_experts <= 64) return body(Constant<2>{});
  if (num_experts <= 128) return body(Constant<4>{});
  if (num_experts <= 256) return body(Constant<8>{});
  if (num_experts <= 512) return body(Constant<16>{});
  body(Constant<32>{});
}

}  // namespace

void route_forward(const RouteForwardArgs& a, Stream stream) {
  MOEBIUS_CHECK_EQ(a.options.top_groups, a.options.num_groups, "groups of experts are not served on the GPU");
  const Options options = options_of(a.options);
  if (options.num_tokens == 0) return;
  with_experts_per_lane(options.num_experts, [&]<int C>(Constant<C>) {
    route_forward_kernel<C>
        <<<grid_size(ceil_div(options.num_tokens, kWarps)), 32 * kWarps, 0, cuda_stream(stream)>>>(
            a.logits, a.bias, a.probs, a.experts, a.weights, a.lse, options);
    MOEBIUS_CUDA_CHECK_LAUNCH("route_forward");
  });
}

void route_backward(const RouteBackwardArgs& a, Stream stream) {
  const Options options = options_of(a.options);
  if (options.num_tokens == 0) return;
  with_experts_per_lane(options.num_experts, [&]<int C>(Constant<C>) {
    route_backward_kernel<C>
        <<<grid_size(ceil_div(options.num_tokens, kWarps)), 32 * kWarps, 0, cuda_stream(stream)>>>(
            a.logits, a.probs, a.experts, a.lse, a.grad_weights, a.grad_probs, a.segments, a.grad_lse_sq,
            a.grad_logits, options);
    MOEBIUS_CUDA_CHECK_LAUNCH("route_backward");
  });
}

}  // namespace moebius::kernels::cuda
