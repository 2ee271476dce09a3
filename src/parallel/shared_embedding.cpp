#include "parallel/shared_embedding.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include "parallel/mesh.h"
#include "parallel/stage_link.h"
#include "telemetry/trace.h"

namespace moebius::parallel {
namespace {

bool is_embedding(const nn::Param& param) {
  return param.spec.name == "embedding";
}

}  // namespace

void share_embedding(const Mesh& mesh, DataParallelOptions& options) {
  options.is_alone = is_embedding;
  if (mesh.layout().index(Axis::pp, mesh.rank()) > 0)
    options.counts = [](const nn::Param& param) { return !is_embedding(param); };
}

void sum_shared_embedding(const Mesh& mesh, DataParallel& shares) {
  const int stage = mesh.layout().index(Axis::pp, mesh.rank()), last = mesh.layout().size(Axis::pp) - 1;
  if (stage != 0 && stage != last) return;
  const at::NoGradGuard no_grad;
  const telemetry::Span span("sum of the embedding", "parallel");
  const int other = last - stage;
  for (size_t b = 0; b < shares.buckets().size(); ++b) {
    if (!is_embedding(*shares.buckets()[b].entries.front().param)) continue;
    const at::Tensor own = shares.gradient(b);
    const at::Tensor theirs = at::empty_like(own);
    Communicator &there = way_between(mesh, stage, other), &back = way_between(mesh, other, stage);
    // The first message between two GPUs holds up the host until the other has come to it: the last stage
    // begins with the one that the first begins with.
    Pending receiving, sending;
    if (stage == 0) sending = there.send(own, other);
    receiving = back.receive(theirs, other);
    if (stage != 0) sending = there.send(own, other);
    receiving.wait();
    sending.wait();
    own.add_(theirs);
  }
}

}  // namespace moebius::parallel
