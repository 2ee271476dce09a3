// A function of tensors with its gradient given as another: what exchanges between ranks are to autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "parallel/communicator.h"

namespace moebius::parallel {

using Map = std::function<at::Tensor(const at::Tensor&)>;

// forward(x), with the gradient backward(grad). Without autograd, or where x needs no gradient, forward(x)
// alone; it runs without autograd always.
at::Tensor exchange(const at::Tensor& x, const Map& forward, Map backward);

// For exchanges in one direction.
inline at::Tensor identity(const at::Tensor& x) {
  return x;
}

// Over the ranks of a group, without autograd, and waited for: the sum of x, which stays as it is, and the
// values of all ranks, (ranks, ...) in their order. x has one shape on all of them.
at::Tensor sum_over(Communicator& group, const at::Tensor& x);
at::Tensor gather_over(Communicator& group, const at::Tensor& x);

// x, with its gradient summed over the ranks, and with a share of its gradient, 1 / ranks.
at::Tensor with_sum_of_gradients(Communicator& group, const at::Tensor& x);
at::Tensor with_share_of_gradient(const Communicator& group, const at::Tensor& x);

}  // namespace moebius::parallel
