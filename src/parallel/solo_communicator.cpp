#include "parallel/solo_communicator.h"

#include <ATen/core/grad_mode.h>

#include "base/check.h"

namespace moebius::parallel {
namespace {

Pending copy_flat(at::Tensor out, const at::Tensor& in) {
  MOEBIUS_CHECK(out.numel() == in.numel(), "an axis of one rank: ", out.numel(), " elements from ",
                in.numel());
  const at::NoGradGuard no_grad;
  if (!out.is_same(in)) out.view({-1}).copy_(in.view({-1}));
  return {};
}

}  // namespace

Pending SoloCommunicator::all_reduce(at::Tensor /*inout*/, ReduceOp /*op*/) {
  ++traffic_["all_reduce"].calls;
  return {};
}

Pending SoloCommunicator::all_gather(at::Tensor out, at::Tensor in) {
  ++traffic_["all_gather"].calls;
  return copy_flat(std::move(out), in);
}

Pending SoloCommunicator::reduce_scatter(at::Tensor out, at::Tensor in) {
  ++traffic_["reduce_scatter"].calls;
  return copy_flat(std::move(out), in);
}

Pending SoloCommunicator::all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                                     std::vector<int64_t> in_rows) {
  MOEBIUS_CHECK(out_rows.size() == 1 && in_rows.size() == 1 && out_rows[0] == in_rows[0] &&
                    out.size(0) == out_rows[0] && in.size(0) == in_rows[0],
                "an axis of one rank exchanges rows with itself only");
  ++traffic_["all_to_all"].calls;
  return copy_flat(std::move(out), in);
}

Pending SoloCommunicator::broadcast(at::Tensor /*inout*/, int root) {
  MOEBIUS_CHECK(root == 0, "an axis of one rank has no rank ", root);
  ++traffic_["broadcast"].calls;
  return {};
}

Pending SoloCommunicator::send(at::Tensor /*in*/, int to) {
  MOEBIUS_CHECK(false, "an axis of one rank sends to rank ", to);
  return {};
}

Pending SoloCommunicator::receive(at::Tensor /*out*/, int from) {
  MOEBIUS_CHECK(false, "an axis of one rank receives from rank ", from);
  return {};
}

}  // namespace moebius::parallel
