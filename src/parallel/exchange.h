// A function of tensors with its gradient given as another: what exchanges between ranks are to autograd.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace moebius::parallel {

using Map = std::function<at::Tensor(const at::Tensor&)>;

// forward(x), with the gradient backward(grad). Without autograd, or where x needs no gradient, forward(x)
// alone; it runs without autograd always.
at::Tensor exchange(const at::Tensor& x, const Map& forward, Map backward);

// For exchanges in one direction.
inline at::Tensor identity(const at::Tensor& x) {
  return x;
}

}  // namespace moebius::parallel
