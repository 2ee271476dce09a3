// Tensor parallelism in one dim (Shoeybi et al. 2019, "Megatron-LM") over an axis of the mesh: what layers
// ask for through nn::TensorAxis, as collectives.
//
//   plain      every rank holds all tokens between the regions. enter() passes them on and sums gradients
//              (all-reduce in the backward pass); leave() sums outputs (all-reduce in the forward pass).
//   sequence   every rank holds ceil(T / n) tokens between the regions, the last ranks fewer, filled up with
//              zeros (Korthikanti et al. 2022). enter() gathers and its backward reduces and scatters;
//              leave() the other way round. The same bytes, 1/n of the memory and of the work between the
//              regions.
//
// Sums are in the dtype of the tensors.
#pragma once

#include <memory>

#include "config/model_config.h"
#include "nn/tensor_axis.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// `axis` outlives the result and every graph of autograd that was made with it.
std::shared_ptr<const nn::TensorAxis> make_tensor_axis(Communicator& axis, bool sequence);

// UserError naming the field when `ranks` processes cannot split the model; when a grid of side x side
// (grid_axis.h) cannot.
void check_tensor_split(const config::ModelConfig& model, int64_t ranks);
void check_grid_split(const config::ModelConfig& model, int64_t side);

}  // namespace moebius::parallel
