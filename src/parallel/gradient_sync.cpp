#include "parallel/gradient_sync.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <utility>

#include "parallel/communicator.h"
#include "parallel/mesh.h"

namespace moebius::parallel {
namespace {

// Large enough that the latency of an exchange is nothing, small enough that its copy costs little memory.
constexpr int64_t kBucketElements = 4 << 20;

// Gradients side by side, under way.
struct Bucket {
  std::vector<at::Tensor> grads;
  at::Tensor flat;
  Pending pending;
};

Bucket send_off(std::vector<at::Tensor> grads, Communicator& communicator) {
  Bucket bucket;
  if (grads.size() == 1 && grads[0].is_contiguous()) {
    bucket.pending = communicator.all_reduce(grads[0]);
    return bucket;
  }
  int64_t count = 0;
  for (const at::Tensor& grad : grads) count += grad.numel();
  bucket.flat = at::empty({count}, grads[0].options().requires_grad(false));
  int64_t begin = 0;
  for (const at::Tensor& grad : grads) {
    bucket.flat.narrow(0, begin, grad.numel()).view(grad.sizes()).copy_(grad);
    begin += grad.numel();
  }
  bucket.pending = communicator.all_reduce(bucket.flat);
  bucket.grads = std::move(grads);
  return bucket;
}

void take_back(Bucket& bucket) {
  bucket.pending.wait();
  int64_t begin = 0;
  for (const at::Tensor& grad : bucket.grads) {
    grad.copy_(bucket.flat.narrow(0, begin, grad.numel()).view(grad.sizes()));
    begin += grad.numel();
  }
}

}  // namespace

void AllReduceGradients::finish() {
  const at::NoGradGuard no_grad;
  std::vector<Bucket> under_way;
  for (const Axis axis : {Axis::data, Axis::expert_data}) {
    Communicator& communicator = mesh_.on(axis);
    if (communicator.size() == 1) continue;
    std::vector<at::Tensor> grads;
    int64_t count = 0;
    const auto send = [&] {
      if (!grads.empty()) under_way.push_back(send_off(std::exchange(grads, {}), communicator));
      count = 0;
    };
    // In the order of declaration, which is the same on every rank; whether there is a gradient depends on
    // the model's form alone.
    for (const nn::Param& param : params_.params()) {
      const at::Tensor& grad = param.value.grad();
      const bool is_expert = param.spec.klass == nn::ParamClass::expert;
      if (!grad.defined() || is_expert != (axis == Axis::expert_data)) continue;
      if (!grads.empty() &&
          (count + grad.numel() > kBucketElements || grads[0].scalar_type() != grad.scalar_type()))
        send();
      grads.push_back(grad);
      count += grad.numel();
    }
    send();
  }
  for (Bucket& bucket : under_way) take_back(bucket);
}

}  // namespace moebius::parallel
