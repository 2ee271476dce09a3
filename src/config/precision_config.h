// Parts of the model whose arithmetic is another than train.precision's.
#pragma once

#include <string>

#include "config/field.h"

namespace moebius::config {

struct PrecisionConfig {
  std::string experts = "model";
};

template <class V>
void describe(V& v, PrecisionConfig& c) {
  v.field(
      "experts", c.experts, one_of({"model", "int8"}), "",
      "Products of the routed experts: as train.precision says, or of integers in the forward pass and for "
      "the "
      "gradients of their inputs, with a scale per token and per output channel; gradients of the weights "
      "stay as "
      "train.precision says (docs/int8.md). One process; on a GPU it takes compute capability 9.0 and bf16.");
}

}  // namespace moebius::config
