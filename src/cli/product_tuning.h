// `moebius bench moe_layer --tune`: measures how the products of a layer's experts are computed fastest on
// this GPU, for the table of ops/product_table.h.
#pragma once

#include <c10/core/Device.h>

#include <string>
#include <utility>
#include <vector>

#include "cli/layer_shapes.h"
#include "ops/product_table.h"

namespace moebius::cli {

// Milliseconds of the ways to compute one product. other_ms: not by a kernel of this form
// (ops/product_table.h); infinite where there is no such way, as for routed rows.
struct ProductTimes {
  ops::ProductKey key;
  std::vector<std::pair<std::string, double>> variant_ms;
  double other_ms;
};

// Of one layer. The gradient of the output is copied for both products that read it, or for none.
struct LayerProductTimes {
  double copy_ms;                          // of the routed rows
  ProductTimes up, routed_up;              // with the activation
  ProductTimes up_again, routed_up_again;  // without, as recomputation asks for it
  ProductTimes down, grad_up;
  ProductTimes grad_down, routed_grad_down;
  ProductTimes weight_down, routed_weight_down;
  ProductTimes weight_up, routed_weight_up;
};

// The fastest ways.
std::vector<ops::ProductTable::Entry> fastest_ways(const LayerProductTimes& times);

// Measures the products of a shape's layer in bf16. UserError on a device without a choice of kernels.
LayerProductTimes time_products(const LayerShape& shape, at::Device device);

// A line for each product: its key, the fastest way and how the others compare.
std::string tuning_text(const LayerProductTimes& times);

}  // namespace moebius::cli
