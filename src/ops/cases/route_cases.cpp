#include <ATen/ATen.h>

#include <limits>

#include "base/concat.h"
#include "ops/cases/case.h"
#include "ops/cases/plain_routing.h"
#include "ops/route.h"

namespace moebius::ops::cases {
namespace {

using kernels::Score;

struct RouteRow {
  std::string name;
  int64_t tokens, experts;
  RouteOptions options;
  bool bias = false;
  std::vector<int64_t> segments = {};  // their lengths; empty: one segment, without numbers
  enum class Logits : uint8_t { random, ties, one_expert } logits = Logits::random;
  Size size = Size::small;
};

at::Tensor scores_of(const at::Tensor& logits, const RouteOptions& options) {
  return options.score == Score::softmax ? at::softmax(logits, 1) : at::sigmoid(logits);
}

at::Tensor selection_of(const at::Tensor& logits, const at::Tensor& bias, const RouteOptions& options) {
  if (bias.defined()) return scores_of(logits, options) + bias;
  return options.group_top2 ? scores_of(logits, options) : logits;
}

// What each group of experts is worth, (T, groups).
at::Tensor worth_of(const at::Tensor& selection, const RouteOptions& options) {
  const at::Tensor grouped =
      std::get<0>(at::sort(selection.unflatten(1, {options.num_groups, -1}), -1, /*descending=*/true));
  return grouped.narrow(2, 0, options.group_top2 ? 2 : 1).sum(2);
}

// The selection scores with minus infinity outside of the best groups.
at::Tensor in_best_groups(const at::Tensor& selection, const RouteOptions& options) {
  if (options.num_groups == 1) return selection;
  const at::Tensor ranked =
      std::get<1>(at::sort(worth_of(selection, options), /*stable=*/true, 1, /*descending=*/true));
  const int64_t size = selection.size(1) / options.num_groups;
  at::Tensor kept = at::full_like(selection, -std::numeric_limits<double>::infinity());
  for (int64_t t = 0; t < selection.size(0); ++t)
    for (int64_t k = 0; k < options.top_groups; ++k) {
      const int64_t first = ranked[t][k].item<int64_t>() * size;
      kept[t].narrow(0, first, size).copy_(selection[t].narrow(0, first, size));
    }
  return kept;
}

// Whether two of the `compared` best of a row are as close as 1e-4 of their size.
at::Tensor has_close(const at::Tensor& values, int64_t compared) {
  const at::Tensor best = std::get<0>(at::topk(values, compared));
  return best.diff(1, 1).abs().lt(best.narrow(1, 1, compared - 1).abs() * 1e-4).any(1);
}

// Random logits whose choices no rounding can change: among the best K + 1 of a token, and among the best
// groups and the next, no two are close.
at::Tensor clear_logits(int64_t num_tokens, int64_t num_experts, const at::Tensor& bias,
                        const RouteOptions& options) {
  at::Tensor logits = at::randn({num_tokens, num_experts}, at::kDouble) * 1.5;
  if (num_experts == 1) return logits;
  const int64_t choosable = options.top_groups * (num_experts / options.num_groups);
  const int64_t compared = std::min(options.top_k + 1, choosable);
  for (;;) {
    const at::Tensor selection = selection_of(logits, bias, options);
    at::Tensor close = has_close(in_best_groups(selection, options), compared);
    if (options.top_groups < options.num_groups)
      close = close.logical_or(has_close(worth_of(selection, options), options.top_groups + 1));
    const at::Tensor rows = close.nonzero().view(-1);
    if (rows.numel() == 0) return logits;
    logits.index_copy_(0, rows, at::randn({rows.numel(), num_experts}, at::kDouble) * 1.5);
  }
}

at::Tensor make_logits(const RouteRow& row, const at::Tensor& bias) {
  switch (row.logits) {
    case RouteRow::Logits::random:
      return clear_logits(row.tokens, row.experts, bias, row.options);
    case RouteRow::Logits::ties:
      return at::randint(-2, 3, {row.tokens, row.experts}, at::kDouble);
    case RouteRow::Logits::one_expert:
      break;
  }
  at::Tensor logits = clear_logits(row.tokens, row.experts, bias, row.options) * 0.5;
  logits.select(1, row.experts / 2).fill_(6.0);
  return logits;
}

at::Tensor segment_numbers(const std::vector<int64_t>& lengths) {
  std::vector<at::Tensor> parts;
  for (size_t s = 0; s < lengths.size(); ++s)
    parts.push_back(at::full({lengths[s]}, static_cast<int64_t>(s), at::kInt));
  return at::cat(parts);
}

Outputs outputs_of(const Routing& r) {
  return {{"weights", r.weights_TK},       {"experts", r.experts_TK, true},
          {"order", r.order_R, true},      {"inverse", r.inverse_R, true},
          {"offsets", r.offsets_E1, true}, {"counts", r.counts_E, true},
          {"aux_loss", r.aux_loss},        {"z_loss", r.z_loss},
          {"entropy", r.entropy},          {"prob_sum", r.prob_sum_SE}};
}

// The choice by libtorch's operators beside that of the kernels.
void add_choice(Outputs& outputs, const at::Tensor& choice) {
  outputs.push_back({"choice", choice, true});
}

// segments: the numbers of all tokens, or undefined.
Outputs plain_route(const at::Tensor& logits, const at::Tensor& bias, const at::Tensor& segments,
                    int64_t num_segments, const RouteOptions& options) {
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  const at::Tensor scores = scores_of(logits, options);
  const at::Tensor selection = in_best_groups(selection_of(logits, bias, options).detach(), options);
  const at::Tensor ranked = std::get<1>(at::sort(selection, /*stable=*/true, 1, /*descending=*/true));
  const at::Tensor experts = ranked.narrow(1, 0, options.top_k);

  at::Tensor weights = scores.gather(1, experts);
  if (options.softmax_after_topk) {
    weights = at::softmax(logits.gather(1, experts), 1);
  } else if (options.normalize) {
    weights = weights / weights.sum(1, true);
  }
  weights = weights * options.scale;

  const at::Tensor probs = scores / scores.sum(1, true);
  const at::Tensor chosen = at::zeros_like(scores.detach()).scatter(1, experts, 1.0);
  at::Tensor aux_loss = at::zeros({}, at::kDouble);
  std::vector<at::Tensor> prob_sums;
  for (int64_t s = 0; s < num_segments; ++s) {
    const at::Tensor mine = segments.defined() ? segments.eq(s).nonzero().view(-1) : at::arange(num_tokens);
    const double length = static_cast<double>(std::max<int64_t>(mine.numel(), 1));
    const at::Tensor share =
        chosen.index_select(0, mine).sum(0) / (length * static_cast<double>(options.top_k));
    prob_sums.push_back(probs.index_select(0, mine).sum(0));
    const at::Tensor mean_prob = prob_sums.back() / length;
    aux_loss = aux_loss + (share * mean_prob).sum() * static_cast<double>(num_experts);
  }
  aux_loss = aux_loss / static_cast<double>(num_segments);

  const double count = static_cast<double>(std::max<int64_t>(num_tokens, 1));
  const PlainOrder sorted = plain_order(experts, num_experts, options.capacity);
  const at::Tensor p = probs.detach();
  Routing r;
  r.weights_TK = weights;
  r.experts_TK = experts;
  r.order_R = sorted.order_R;
  r.inverse_R = sorted.inverse_R;
  r.offsets_E1 = sorted.offsets_E1;
  r.counts_E = chosen.sum(0);
  r.aux_loss = aux_loss;
  r.z_loss = at::logsumexp(logits, {1}).square().sum() / count;
  r.entropy = -at::xlogy(p, p).sum() / count;
  r.prob_sum_SE = at::stack(prob_sums);
  Outputs outputs = outputs_of(r);
  if (options.num_groups > 1) add_choice(outputs, experts);
  return outputs;
}

Example route_example(const RouteRow& row) {
  const at::Tensor bias =
      row.bias ? at::randn({row.experts}, at::kDouble).to(at::kFloat).to(at::kDouble) * 0.125 : at::Tensor();
  // Where choices are between equals the outcome is not differentiable.
  const InputKind kind = row.logits == RouteRow::Logits::ties ? InputKind::constant : InputKind::f32;
  std::vector<Input> inputs;
  inputs.reserve(3);  // else g++ 12 sees a move past the end in the joined source
  inputs.push_back({"logits", make_logits(row, bias), kind});
  if (row.bias) inputs.push_back({"bias", bias, InputKind::constant});
  if (!row.segments.empty()) inputs.push_back({"segments", segment_numbers(row.segments), InputKind::index});
  const int64_t num_segments = std::max<int64_t>(1, static_cast<int64_t>(row.segments.size()));
  const auto part = [row](const Tensors& in, bool segments) {
    if (segments) return row.segments.empty() ? at::Tensor() : in.back();
    return row.bias ? in[1] : at::Tensor();
  };
  return {inputs,
          [=](const Tensors& in) {
            Outputs outputs =
                outputs_of(route(in[0], part(in, false), part(in, true), num_segments, row.options));
            if (row.options.num_groups > 1)
              add_choice(outputs, choose_in_groups(in[0].detach(), part(in, false), row.options));
            return outputs;
          },
          [=](const Tensors& in) {
            return plain_route(in[0], part(in, false), part(in, true), num_segments, row.options);
          }};
}

}  // namespace

void add_route_cases(CaseList& cases) {
  const auto softmax = [](int64_t k) { return RouteOptions{.top_k = k}; };
  const auto sigmoid = [](int64_t k) { return RouteOptions{.top_k = k, .score = Score::sigmoid}; };
  const auto with = [](RouteOptions options, auto change) {
    change(options);
    return options;
  };
  const auto after = [&](int64_t k) {
    return with(softmax(k), [](auto& o) { o.softmax_after_topk = true; });
  };
  const auto plain = [](auto& o) { o.normalize = false; };
  const auto scaled = [](auto& o) { o.scale = 2.5; };
  const auto groups = [](int64_t count, int64_t kept, bool top2) {
    return [=](auto& o) {
      o.num_groups = count;
      o.top_groups = kept;
      o.group_top2 = top2;
    };
  };
  const auto capacity = [](int64_t rows) { return [rows](auto& o) { o.capacity = rows; }; };
  using Logits = RouteRow::Logits;
  const std::vector<RouteRow> rows{
      {"one_token_e8_k2", 1, 8, softmax(2)},
      {"no_tokens_e8_k2", 0, 8, softmax(2)},
      {"e1_k1", 9, 1, softmax(1)},
      {"sigmoid_e1_k1", 9, 1, with(sigmoid(1), plain)},
      {"e5_k5", 33, 5, softmax(5)},
      {"t129_e8_k1_unnormalised", 129, 8, with(softmax(1), plain)},
      {"t129_e8_k2", 129, 8, softmax(2)},
      {"t129_e8_k2_after_topk", 129, 8, after(2)},
      {"t129_e8_k2_after_topk_scaled", 129, 8, with(after(2), scaled)},
      {"t65_e64_k8_unnormalised", 65, 64, with(softmax(8), plain)},
      {"t65_e60_k4_scaled", 65, 60, with(softmax(4), scaled)},
      {"t33_e512_k8", 33, 512, softmax(8)},
      {"t33_e512_k32", 33, 512, softmax(32)},
      {"sigmoid_t65_e64_k6", 65, 64, sigmoid(6)},
      {"sigmoid_t65_e64_k6_unnormalised_scaled", 65, 64, with(with(sigmoid(6), plain), scaled)},
      {"bias_t129_e8_k2", 129, 8, softmax(2), true},
      {"bias_t65_e16_k2_after_topk", 65, 16, after(2), true},
      {"bias_sigmoid_t65_e256_k8_scaled", 65, 256, with(sigmoid(8), scaled), true},
      {"segments_t100_e8_k2", 100, 8, softmax(2), false, {40, 1, 59}},
      {"segments_bias_sigmoid_t96_e16_k4", 96, 16, sigmoid(4), true, {32, 32, 32}},
      {"capacity0_t33_e4_k2", 33, 4, with(softmax(2), capacity(0))},
      {"capacity7_t65_e8_k2", 65, 8, with(softmax(2), capacity(7))},
      {"capacity1000_t65_e8_k2", 65, 8, with(softmax(2), capacity(1000))},
      {"all_to_one_t129_e8_k1", 129, 8, softmax(1), false, {}, Logits::one_expert},
      {"all_to_one_capacity20_t129_e8_k2",
       129,
       8,
       with(softmax(2), capacity(20)),
       false,
       {},
       Logits::one_expert},
      {"ties_t129_e16_k4", 129, 16, softmax(4), false, {}, Logits::ties},
      {"ties_t65_e70_k32", 65, 70, softmax(32), false, {}, Logits::ties},
      {"groups4of8_t65_e8_k3_unnormalised", 65, 8, with(with(softmax(3), plain), groups(4, 2, false))},
      {"groups3of4_t65_e20_k6", 65, 20, with(softmax(6), groups(4, 3, false))},
      {"groups_top2_sigmoid_t65_e16_k4", 65, 16, with(sigmoid(4), groups(4, 2, true))},
      {"groups_top2_bias_sigmoid_t65_e256_k8_scaled", 65, 256,
       with(with(sigmoid(8), scaled), groups(8, 4, true)), true},
      {"groups_max_bias_softmax_t65_e15_k5", 65, 15, with(softmax(5), groups(3, 1, false)), true},
      {"groups_all_t33_e8_k2", 33, 8, with(softmax(2), groups(4, 4, true))},
      {"groups_ties_t129_e16_k4", 129, 16, with(softmax(4), groups(8, 2, false)), false, {}, Logits::ties},
      {"t2048_e8_k2", 2048, 8, softmax(2), false, {}, Logits::random, Size::bench},
      {"t16384_e8_k2", 16384, 8, softmax(2), false, {}, Logits::random, Size::large},
      {"t16384_e64_k8", 16384, 64, with(softmax(8), plain), false, {}, Logits::random, Size::large},
      {"t16384_e128_k8", 16384, 128, softmax(8), false, {}, Logits::random, Size::large},
  };
  for (const RouteRow& row : rows) {
    const double scores = 4.0 * static_cast<double>(row.tokens * row.experts);
    const double slots = 8.0 * static_cast<double>(row.tokens * row.options.top_k);
    cases.push_back({.name = "route/" + row.name,
                     .op_class = OpClass::routing,
                     .work = {Work::Unit::bytes, 3 * scores + 3 * slots, 2 * scores + slots},
                     .dtypes = {at::kFloat},
                     .size = row.size,
                     .make = [row] { return route_example(row); }});
  }
}

}  // namespace moebius::ops::cases
