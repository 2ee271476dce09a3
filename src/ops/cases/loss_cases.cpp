#include <ATen/ATen.h>

#include <cmath>

#include "base/concat.h"
#include "kernels/api/loss.h"
#include "ops/cases/case.h"
#include "ops/linear_loss.h"

namespace moebius::ops::cases {
namespace {

// Every `ignore_every`-th token has no target (0: all have one).
Example loss_example(int64_t num_tokens, int64_t vocab, int64_t width, int64_t ignore_every) {
  const double scale = 1.0 / static_cast<double>(std::max<int64_t>(num_tokens, 1));
  at::Tensor targets = at::randint(vocab, {num_tokens}, at::kLong);
  if (ignore_every > 0) targets.slice(0, 0, num_tokens, ignore_every).fill_(kernels::kIgnoredTarget);
  return {{{"h", at::randn({num_tokens, width}, at::kDouble)},
           {"weight", at::randn({vocab, width}, at::kDouble) * (2.0 / std::sqrt(static_cast<double>(width)))},
           {"targets", targets, InputKind::index}},
          [scale](const Tensors& in) {
            at::Tensor token_loss;
            const at::Tensor loss = linear_cross_entropy(in[0], in[1], in[2], scale, &token_loss);
            return Outputs{{"loss", loss}, {"token_loss", token_loss}};
          },
          [scale](const Tensors& in) {
            const at::Tensor log_probs = at::log_softmax(at::mm(in[0], in[1].t()), 1);
            const at::Tensor counted = in[2].ge(0);
            const at::Tensor losses =
                -log_probs.gather(1, in[2].clamp_min(0).unsqueeze(1)).squeeze(1) * counted;
            return Outputs{{"loss", losses.sum() * scale}, {"token_loss", losses.detach()}};
          }};
}

}  // namespace

void add_loss_cases(CaseList& cases) {
  struct Row {
    int64_t tokens, vocab, width, ignore_every = 0;
    Size size = Size::small;
  };
  for (const Row row : {Row{1, 8, 8},
                        {1, 1, 8},
                        {33, 256, 40, 3},
                        {65, 1000, 64},
                        {40, 96, 16, 1},
                        {1100, 64, 16, 7},
                        {0, 16, 8},
                        {2048, 256, 128, 0, Size::bench},
                        {4096, 4096, 384, 0, Size::bench},
                        {16384, 32000, 2048, 0, Size::large},
                        {16384, 32000, 4096, 0, Size::large}}) {
    const double product = 2.0 * static_cast<double>(row.tokens * row.vocab * row.width);
    const std::string ignored = row.ignore_every > 0 ? concat("_ignored", row.ignore_every) : "";
    cases.push_back(
        {.name = concat("linear_cross_entropy/t", row.tokens, "_v", row.vocab, "_d", row.width, ignored),
         .op_class = OpClass::loss,
         .work = {Work::Unit::flops, product, 2 * product},
         .dtypes = both_dtypes(),
         .size = row.size,
         .make = [row] { return loss_example(row.tokens, row.vocab, row.width, row.ignore_every); }});
  }
}

}  // namespace moebius::ops::cases
