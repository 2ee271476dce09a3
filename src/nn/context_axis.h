// What attention asks of the processes that hold other tokens of the same sequences (context parallelism).
// The interface lives here with its callers, who know no collectives; parallel/ring_attention.h implements
// it. Everything else in a layer is a function of single tokens and needs no axis.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/attention.h"

namespace moebius::nn {

class ContextAxis {
 public:
  virtual ~ContextAxis() = default;

  // As ops::attention with autograd, for the tokens of this process: qkv_TC are theirs, with the positions
  // that they have in their documents, and documents (borders, sequence_length) those of whole sequences.
  virtual at::Tensor attention(const at::Tensor& qkv_TC, const ops::Segments& documents,
                               const ops::AttentionShape& shape, const at::Tensor& sinks_H) const = 0;
};

// The same without an axis: all tokens are here.
inline at::Tensor attend(const ContextAxis* axis, const at::Tensor& qkv_TC, const ops::Segments& documents,
                         const ops::AttentionShape& shape, const at::Tensor& sinks_H = {}) {
  return axis != nullptr ? axis->attention(qkv_TC, documents, shape, sinks_H)
                         : ops::attention(qkv_TC, documents, shape, sinks_H);
}

}  // namespace moebius::nn
