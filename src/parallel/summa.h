// Tensor parallelism in two dims: a product on a grid of q x q ranks of which each holds one block of every
// matrix, input, weight and output alike. (SUMMA: van de Geijn and Watts 1997; forward and backward for
// training: Xu et al. 2021, "An Efficient 2D Method for Training Super-Large Deep Learning Models".)
//
//   y_TN = x_TK w_NK^T    rank (i, j) has x[T_i, K_j], w[N_j, K_i] and gets y[T_i, N_j]
//
// so that an output is the input of the next product as it lies. Step l of q brings x[T_i, K_l] along row i
// and w[N_j, K_l] along column j, and adds their product; the next step's blocks travel meanwhile.
//
// Of n = q^2 ranks each sends in the forward pass its two blocks to q - 1 others, (q - 1) / n (|x| + |w|)
// elements, and in the backward pass the same blocks again and (q - 1) / n of the two gradients: O(1 /
// sqrt(n)) of the matrices, where splitting one dim sends 2 (n - 1) / n of the output whatever n is.
#pragma once

#include <ATen/core/Tensor.h>

#include "parallel/communicator.h"

namespace moebius::parallel {

// Where this rank stands: `row` are the ranks of its row (rank() is the column j), `column` those of its
// column (rank() is the row i). Both outlive every graph made with them.
struct Grid {
  Communicator& row;
  Communicator& column;
};

// With autograd in both. All blocks of a matrix have one shape on all ranks; sums are in fp32 and rounded
// once. A collective of all ranks of the grid, and so is its backward pass.
at::Tensor summa_linear(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid);

// Block (row, column) of q x q of a matrix whose sizes q divides: what a rank has of x and y. Its weight is
// block_of(weight, q, column, row).
at::Tensor block_of(const at::Tensor& matrix, int64_t q, int64_t row, int64_t column);

}  // namespace moebius::parallel
