#include <algorithm>
#include <array>

#include "base/check.h"
#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/route.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

constexpr int64_t kMaxExperts = 1024;
constexpr int64_t kMaxTopK = 32;
constexpr float kTiny = 1e-20f;  // keeps a sum of vanishing sigmoids from being divided by
constexpr float kMinusInfinity = -HUGE_VALF;

// One float per expert, padded to whole vectors.
struct ExpertBuffer {
  HWY_ALIGN float at[kMaxExperts];
};

HWY_INLINE float max_of(const float* x, int64_t n) {
  Vf max = hn::Set(F32(), kMinusInfinity);
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    max = hn::Max(max, part.keep(part.load(x + i), kMinusInfinity));
  }
  return max_lanes(max);
}

// out = exp(x - shift); returns the sum.
HWY_INLINE float exp_of(const float* x, int64_t n, float shift, float* out) {
  Vf sum = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    const Vf e = part.keep(exp(hn::Sub(part.load(x + i), hn::Set(F32(), shift))), 0.0f);
    part.store(e, out + i);
    sum = hn::Add(sum, e);
  }
  return sum_lanes(sum);
}

HWY_INLINE float sigmoid_of(const float* x, int64_t n, float* out) {
  Vf sum = hn::Zero(F32());
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    const Vf s = part.keep(sigmoid(part.load(x + i)), 0.0f);
    part.store(s, out + i);
    sum = hn::Add(sum, s);
  }
  return sum_lanes(sum);
}

HWY_INLINE void scale_by(const float* x, int64_t n, float factor, float* out) {
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    part.store(hn::Mul(part.load(x + i), hn::Set(F32(), factor)), out + i);
  }
}

// Takes the experts of all but the best groups out of the choice.
HWY_NOINLINE void keep_top_groups(float* keys, const RouteOptions& o) {
  const int64_t size = o.num_experts / o.num_groups;
  std::array<float, kMaxExperts> worth;
  for (int64_t g = 0; g < o.num_groups; ++g) {
    float best = kMinusInfinity, second = kMinusInfinity;
    for (const float* key = keys + g * size; key < keys + (g + 1) * size; ++key) {
      second = std::max(second, std::min(best, *key));
      best = std::max(best, *key);
    }
    worth[static_cast<size_t>(g)] = o.group_top2 ? best + second : best;
  }
  std::array<bool, kMaxExperts> kept{};
  for (int64_t k = 0; k < o.top_groups; ++k) {
    int64_t top = -1;
    for (int64_t g = 0; g < o.num_groups; ++g)
      if (!kept[static_cast<size_t>(g)] &&
          (top < 0 || worth[static_cast<size_t>(g)] > worth[static_cast<size_t>(top)]))
        top = g;
    kept[static_cast<size_t>(top)] = true;
  }
  for (int64_t g = 0; g < o.num_groups; ++g)
    if (!kept[static_cast<size_t>(g)]) std::fill(keys + g * size, keys + (g + 1) * size, kMinusInfinity);
}

// The top_k largest of x (+ bias), largest first, lower index first among equals. Whatever the values are
// (infinite or not numbers) the choices are valid and differ.
HWY_INLINE void select_top(const float* x, const float* bias, const RouteOptions& o, int32_t* chosen) {
  const F32 d;
  const int64_t n = o.num_experts, top_k = o.top_k;
  ExpertBuffer keys;
  const Vf lowest = hn::Set(d, -3.402823466e38f);  // above the minus infinity that marks what is taken
  for (int64_t i = 0; i < n; i += lanes()) {
    const Part part(n - i);
    Vf key = part.load(x + i);
    if (bias != nullptr) key = hn::Add(key, part.load(bias + i));
    key = hn::IfThenElse(hn::Gt(key, lowest), key, lowest);
    hn::Store(part.keep(key, kMinusInfinity), d, keys.at + i);
  }
  if (o.top_groups < o.num_groups) keep_top_groups(keys.at, o);
  for (int64_t k = 0; k < top_k; ++k) {
    Vf max = hn::Load(d, keys.at);
    for (int64_t i = lanes(); i < n; i += lanes()) max = hn::Max(max, hn::Load(d, keys.at + i));
    max = hn::MaxOfLanes(d, max);
    for (int64_t i = 0; i < n; i += lanes()) {
      const intptr_t lane = hn::FindFirstTrue(d, hn::Eq(hn::Load(d, keys.at + i), max));
      if (lane < 0) continue;
      chosen[k] = static_cast<int32_t>(i + lane);
      keys.at[i + lane] = kMinusInfinity;
      break;
    }
  }
}

HWY_INLINE float sum_of(const float* x, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  return sum;
}

// values[k] = softmax over the chosen logits.
HWY_INLINE void softmax_chosen(const float* logits, const int32_t* chosen, int64_t top_k, float* values) {
  HWY_ALIGN float picked[kMaxTopK];
  for (int64_t k = 0; k < top_k; ++k) picked[k] = logits[chosen[k]];
  const float sum = exp_of(picked, top_k, max_of(picked, top_k), picked);
  scale_by(picked, top_k, 1.0f / sum, values);
}

void RouteRows(const RouteForwardArgs& a, int64_t begin, int64_t end) {
  const RouteOptions& o = a.options;
  const int64_t num = o.num_experts, top_k = o.top_k;
  ExpertBuffer scores;
  for (int64_t t = begin; t < end; ++t) {
    const float* logits = a.logits + t * num;
    float* probs = a.probs + t * num;
    int32_t* chosen = a.experts + t * top_k;
    float* weights = a.weights + t * top_k;

    const float max = max_of(logits, num);
    const float sum = exp_of(logits, num, max, scores.at);
    a.lse[t] = max + std::log(sum);
    if (o.score == Score::softmax) {
      scale_by(scores.at, num, 1.0f / sum, probs);
      scale_by(scores.at, num, 1.0f / sum, scores.at);
    } else {
      const float sigmoids = sigmoid_of(logits, num, scores.at);
      scale_by(scores.at, num, 1.0f / (sigmoids + kTiny), probs);
    }

    select_top(a.bias == nullptr && !o.group_top2 ? logits : scores.at, a.bias, o, chosen);
    float factor = o.scale;
    if (o.score == Score::softmax && o.softmax_after_topk) {
      softmax_chosen(logits, chosen, top_k, weights);
    } else {
      for (int64_t k = 0; k < top_k; ++k) weights[k] = scores.at[chosen[k]];
      if (o.normalize) factor = factor / (sum_of(weights, top_k) + kTiny);
    }
    for (int64_t k = 0; k < top_k; ++k) weights[k] *= factor;
  }
}

// Gradient of the chosen experts' scores (or, for softmax after top-k, of their logits) from that of the
// weights.
HWY_INLINE void chosen_gradient(const RouteOptions& o, const float* values, const float* grad_weights,
                                float* grad) {
  if (!o.normalize && !o.softmax_after_topk) {
    for (int64_t k = 0; k < o.top_k; ++k) grad[k] = o.scale * grad_weights[k];
    return;
  }
  // weight = scale * value / sum(values)
  const float sum = sum_of(values, o.top_k) + kTiny;
  float dot = 0.0f;
  for (int64_t k = 0; k < o.top_k; ++k) dot += grad_weights[k] * values[k];
  for (int64_t k = 0; k < o.top_k; ++k) grad[k] = o.scale / sum * (grad_weights[k] - dot / sum);
}

void RouteBackRows(const RouteBackwardArgs& a, int64_t begin, int64_t end) {
  const F32 d;
  const RouteOptions& o = a.options;
  const int64_t num = o.num_experts, top_k = o.top_k;
  const bool softmax = o.score == Score::softmax;
  const bool after = softmax && o.softmax_after_topk;
  ExpertBuffer scores, grad_scores;
  for (int64_t t = begin; t < end; ++t) {
    const float* logits = a.logits + t * num;
    const float* probs = a.probs + t * num;
    const int32_t* chosen = a.experts + t * top_k;
    float* grad_logits = a.grad_logits + t * num;
    const float lse_pull = a.grad_lse_sq == nullptr ? 0.0f : 2.0f * *a.grad_lse_sq * a.lse[t];
    const float* grad_probs =
        a.grad_probs == nullptr ? nullptr : a.grad_probs + (a.segments == nullptr ? 0 : a.segments[t]) * num;

    // Scores, and their gradient from the balance loss: probs = scores (softmax) or scores / sum(scores)
    // (sigmoid).
    float sum = 1.0f;
    if (!softmax) sum = sigmoid_of(logits, num, scores.at) + kTiny;
    float balance = 0.0f;
    if (!softmax && grad_probs != nullptr) {
      Vf dot = hn::Zero(d);
      for (int64_t i = 0; i < num; i += lanes()) {
        const Part part(num - i);
        dot = hn::MulAdd(part.load(probs + i), part.load(grad_probs + i), dot);
      }
      balance = sum_lanes(dot);
    }
    for (int64_t i = 0; i < num; i += lanes()) {
      const Part part(num - i);
      Vf g = hn::Zero(d);
      if (grad_probs != nullptr)
        g = hn::Mul(hn::Sub(part.load(grad_probs + i), hn::Set(d, balance)), hn::Set(d, 1.0f / sum));
      hn::Store(g, d, grad_scores.at + i);
    }

    float values[kMaxTopK], grad[kMaxTopK];
    if (after) {
      softmax_chosen(logits, chosen, top_k, values);
    } else {
      for (int64_t k = 0; k < top_k; ++k) values[k] = softmax ? probs[chosen[k]] : scores.at[chosen[k]];
    }
    chosen_gradient(o, values, a.grad_weights + t * top_k, grad);
    if (!after) {
      for (int64_t k = 0; k < top_k; ++k) grad_scores.at[chosen[k]] += grad[k];
    }

    // From scores to logits.
    Vf dot = hn::Zero(d);
    if (softmax) {
      for (int64_t i = 0; i < num; i += lanes()) {
        const Part part(num - i);
        dot = hn::MulAdd(part.load(probs + i), part.keep(hn::Load(d, grad_scores.at + i), 0.0f), dot);
      }
    }
    const Vf pull = hn::Set(d, softmax ? sum_lanes(dot) - lse_pull : 0.0f);
    for (int64_t i = 0; i < num; i += lanes()) {
      const Part part(num - i);
      const Vf g = hn::Load(d, grad_scores.at + i);
      Vf out;
      if (softmax) {
        out = hn::Mul(part.load(probs + i), hn::Sub(g, pull));
      } else {
        const Vf s = hn::Load(d, scores.at + i);
        out = hn::Mul(g, hn::NegMulAdd(s, s, s));
        if (lse_pull != 0.0f) {
          const Vf p = exp(hn::Sub(part.load(logits + i), hn::Set(d, a.lse[t])));
          out = hn::MulAdd(p, hn::Set(d, lse_pull), out);
        }
      }
      part.store(out, grad_logits + i);
    }
    if (after) {
      for (int64_t k = 0; k < top_k; ++k) grad_logits[chosen[k]] += grad[k] * values[k];
    }
  }
}

// ln x for normal positive x, within 2 units in the last place: x = 2^e * m with m in [sqrt(1/2), sqrt(2)),
// ln m = 2 atanh((m - 1) / (m + 1)) by its series.
HWY_INLINE Vf log_positive(Vf x) {
  const F32 d;
  const I32 di;
  const U32 du;
  // Subtracting the bits of sqrt(1/2) leaves the exponent of the scaled mantissa in the upper bits.
  const Vu offset = hn::Sub(hn::BitCast(du, x), hn::Set(du, 0x3F3504F3u));
  const Vf e = hn::ConvertTo(d, hn::ShiftRight<23>(hn::BitCast(di, offset)));
  const Vf m = hn::BitCast(d, hn::Add(hn::And(offset, hn::Set(du, 0x007FFFFFu)), hn::Set(du, 0x3F3504F3u)));
  const Vf one = hn::Set(d, 1.0f);
  const Vf s = hn::Div(hn::Sub(m, one), hn::Add(m, one)), z = hn::Mul(s, s);
  Vf p = hn::Set(d, 2.0f / 9.0f);
  p = hn::MulAdd(p, z, hn::Set(d, 2.0f / 7.0f));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0f / 5.0f));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0f / 3.0f));
  p = hn::MulAdd(p, z, hn::Set(d, 2.0f));
  return hn::MulAdd(e, hn::Set(d, 0.693147180559945f), hn::Mul(s, p));
}

// Adds the sums of tokens [begin, end) of one segment to prob_sum and counts; returns the entropy sum.
float StatsRows(const RouteStatsArgs& a, int64_t begin, int64_t end, float* prob_sum, float* counts) {
  const F32 d;
  const int64_t num = a.options.num_experts, top_k = a.options.top_k;
  Vf entropy = hn::Zero(d);
  for (int64_t t = begin; t < end; ++t) {
    const float* probs = a.probs + t * num;
    for (int64_t i = 0; i < num; i += lanes()) {
      const Part part(num - i);
      const Vf p = part.load(probs + i);
      part.store(hn::Add(part.load(prob_sum + i), p), prob_sum + i);
      entropy = hn::NegMulAdd(p, log_positive(hn::Max(p, hn::Set(d, 1.17549435e-38f))), entropy);
    }
    for (int64_t k = 0; k < top_k; ++k) counts[a.experts[t * top_k + k]] += 1.0f;
  }
  return sum_lanes(entropy);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {
namespace {

void check_options(const RouteOptions& o) {
  MOEBIUS_CHECK(o.num_experts >= 1 && o.num_experts <= 1024, "experts: ", o.num_experts);
  MOEBIUS_CHECK(o.top_k >= 1 && o.top_k <= 32 && o.top_k <= o.num_experts, "top_k: ", o.top_k,
                ", experts: ", o.num_experts);
  MOEBIUS_CHECK(o.num_groups >= 1 && o.num_experts % o.num_groups == 0 && o.top_groups >= 1 &&
                    o.top_groups <= o.num_groups && o.top_k <= o.top_groups * (o.num_experts / o.num_groups),
                o.num_experts, " experts in ", o.num_groups, " groups, ", o.top_k, " of ", o.top_groups);
}

}  // namespace

HWY_EXPORT(RouteRows);
HWY_EXPORT(RouteBackRows);
HWY_EXPORT(StatsRows);

void route_forward(const RouteForwardArgs& args, Stream) {
  check_options(args.options);
  parallel_for(0, args.options.num_tokens, row_grain(16 * args.options.num_experts),
               [&](int64_t begin, int64_t end) {
                 HWY_DYNAMIC_DISPATCH(RouteRows)
                 (args, begin, end);
               });
}

void route_backward(const RouteBackwardArgs& args, Stream) {
  check_options(args.options);
  parallel_for(0, args.options.num_tokens, row_grain(8 * args.options.num_experts),
               [&](int64_t begin, int64_t end) {
                 HWY_DYNAMIC_DISPATCH(RouteBackRows)
                 (args, begin, end);
               });
}

// Each block of tokens sums its segments by itself (segments ascend, so a block holds a few neighbours); the
// partial sums are then added in the order of the blocks.
void route_stats(const RouteStatsArgs& args, Stream) {
  check_options(args.options);
  const int64_t num = args.options.num_experts;
  std::fill(args.prob_sum, args.prob_sum + args.num_segments * num, 0.0f);
  std::fill(args.counts, args.counts + args.num_segments * num, 0.0f);
  const Blocks blocks = cut_rows(args.options.num_tokens, 256, 64);
  const auto segment_of = [&](int64_t t) { return args.segments == nullptr ? 0 : int64_t{args.segments[t]}; };

  struct Partial {
    int64_t first_segment = 0;
    std::vector<float> prob_sum, counts;  // (segments of the block, E)
    double entropy = 0.0, lse_sq = 0.0;
  };
  std::vector<Partial> partials(static_cast<size_t>(blocks.count));
  parallel_blocks(blocks, [&](int64_t first_block, int64_t last_block) {
    for (int64_t b = first_block; b < last_block; ++b) {
      Partial& p = partials[static_cast<size_t>(b)];
      const int64_t begin = blocks.begin(b), end = blocks.end(b);
      p.first_segment = segment_of(begin);
      const int64_t last_segment = segment_of(end - 1);
      MOEBIUS_CHECK(
          p.first_segment >= 0 && p.first_segment <= last_segment && last_segment < args.num_segments,
          "segments of tokens ", begin, " to ", end - 1, ": ", p.first_segment, " to ", last_segment, " of ",
          args.num_segments);
      p.prob_sum.resize(static_cast<size_t>((last_segment - p.first_segment + 1) * num));
      p.counts.resize(p.prob_sum.size());
      for (int64_t t = begin; t < end;) {
        const int64_t segment = segment_of(t);
        int64_t next = t + 1;
        while (next < end && segment_of(next) == segment) ++next;
        MOEBIUS_CHECK(segment >= p.first_segment && segment <= last_segment,
                      "segments do not ascend at token ", t);
        const int64_t at = (segment - p.first_segment) * num;
        p.entropy +=
            HWY_DYNAMIC_DISPATCH(StatsRows)(args, t, next, p.prob_sum.data() + at, p.counts.data() + at);
        t = next;
      }
      for (int64_t t = begin; t < end; ++t) p.lse_sq += static_cast<double>(args.lse[t]) * args.lse[t];
    }
  });
  double entropy = 0.0, lse_sq = 0.0;
  for (const Partial& p : partials) {
    for (size_t i = 0; i < p.prob_sum.size(); ++i) {
      args.prob_sum[p.first_segment * num + static_cast<int64_t>(i)] += p.prob_sum[i];
      args.counts[p.first_segment * num + static_cast<int64_t>(i)] += p.counts[i];
    }
    entropy += p.entropy;
    lse_sq += p.lse_sq;
  }
  *args.entropy_sum = static_cast<float>(entropy);
  *args.lse_sq_sum = static_cast<float>(lse_sq);
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
