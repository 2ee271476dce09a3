#include "parallel/load_sum.h"

#include <ATen/core/grad_mode.h>

namespace moebius::parallel {

at::Tensor RankLoadSum::sum(const at::Tensor& counts_E) const {
  const at::NoGradGuard no_grad;
  at::Tensor all_E = counts_E.detach().clone();
  communicator_.all_reduce(all_E).wait();
  return all_E;
}

}  // namespace moebius::parallel
