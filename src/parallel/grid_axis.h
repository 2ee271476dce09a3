// Tensor parallelism in two dims: q x q ranks of which each holds one block of every activation and of every
// weight of a layer. (Xu et al. 2021, "An Efficient 2D Method for Training Super-Large Deep Learning Models",
// known as Optimus; the products: parallel/summa.h. docs/adr/0016-tensor-ranks-on-a-grid.md says
// where this differs and why.)
//
// Rank (i, j), of row i and column j, has between the layers x[T_i, D_j]: the i-th share of the tokens and
// the j-th of the model's width. A row is what nn::TensorAxis calls a line.
//
//   pairs of products   up w[N_j, D_i] by summa_linear, down w[D_i, N_j] by summa_linear_summed; heads or
//                       hidden units between them are those of column j, of the tokens of row i
//   attention itself    the ranks of a column exchange tokens for heads (all-to-all), and back
//   norms               sums of squares over the row
//   regions             (router, routed experts, output layer) x[T_i, D]: gathered along the row, with sums
//                       scattered along it again
//   routed experts      experts of row i, hidden units of column j, whole width; tokens go to the rows of
//                       their experts along the column (expert_dispatcher.h)
//   embedding, output   w[V_j, D_i]; the lookup sums along the row and swaps blocks with rank (j, i), the
//                       output layer gathers its rows' width along the column
//
// Parameters that are held whole, or alike in all rows, get the sums of their gradients over the rows in the
// backward pass, so that each replica has all of it. Sums are in the dtype of the tensors, but those of
// summa.h and of norms, which are in fp32.
#pragma once

#include <memory>

#include "nn/tensor_axis.h"
#include "parallel/communicator.h"

namespace moebius::parallel {

// all: the q^2 ranks row by row; row: those of this rank's row, by column; column: those of its column, by
// row. They outlive the result and every graph of autograd that was made with it.
std::shared_ptr<const nn::TensorAxis> make_grid_axis(Communicator& all, Communicator& row,
                                                     Communicator& column);

}  // namespace moebius::parallel
