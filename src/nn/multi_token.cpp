#include "nn/multi_token.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/where.h>

#include "nn/linear.h"
#include "ops/linear_loss.h"
#include "ops/norm.h"

namespace moebius::nn {
namespace {

Param& norm_param(ParamTable& params, const char* name, int64_t dim) {
  return params.declare(
      {.name = name, .dims = {dim}, .klass = ParamClass::norm, .init = Init::ones(), .decays = false});
}

// The element behind each; the first behind the last.
at::Tensor behind(const at::Tensor& values_T) {
  return at::cat({values_T.slice(0, 1), values_T.slice(0, 0, 1)});
}

}  // namespace

MultiToken::MultiToken(int64_t dim, double norm_eps, double init_std, ParamTable& params,
                       const TensorAxis* axis)
    : eps_(norm_eps),
      axis_(axis),
      hidden_norm_(norm_param(params, "mtp.hidden_norm", dim)),
      embedding_norm_(norm_param(params, "mtp.embedding_norm", dim)),
      projection_(params.declare({.name = "mtp.projection",
                                  .dims = {dim, 2 * dim},
                                  .init = Init::normal(init_std),
                                  .is_product = true})),
      final_norm_(norm_param(params, "mtp.final_norm", dim)) {}

at::Tensor MultiToken::combine(const at::Tensor& hidden_TD, const at::Tensor& next_embedding_TD) const {
  const at::Tensor hidden_norm = outside(axis_, hidden_norm_.value),
                   embedding_norm = outside(axis_, embedding_norm_.value);
  const at::Tensor both = at::cat(
      {ops::rms_norm(hidden_TD, hidden_norm, eps_), ops::rms_norm(next_embedding_TD, embedding_norm, eps_)},
      1);
  return quant::linear(both, outside(axis_, projection_.value), {}, projection_.product.get());
}

MultiToken::Shifted MultiToken::shift(const at::Tensor& tokens_T, const at::Tensor& targets_T,
                                      const at::Tensor& positions_T) {
  // The last token has the first behind it, whose position is 0: it ends its document like any other. Where
  // a document ends its last token stands for the next, so that what the block's router counts of it depends
  // on no other document.
  const at::Tensor goes_on = at::ne(behind(positions_T), 0);
  return {at::where(goes_on, behind(tokens_T), tokens_T),
          at::where(goes_on, behind(targets_T), kernels::kIgnoredTarget)};
}

}  // namespace moebius::nn
