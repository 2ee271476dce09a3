// Tensor parallelism in two dims: a product on a grid of q x q ranks of which each holds one block of every
// matrix, input, weight and output alike. (SUMMA: van de Geijn and Watts 1997; forward and backward for
// training: Xu et al. 2021, "An Efficient 2D Method for Training Super-Large Deep Learning Models".)
//
//   y_TN = x_TK w_NK^T    rank (i, j) has x[T_i, K_j] and gets y[T_i, N_j]
//
// so that an output is the input of the next product as it lies. Its block of the weight, and with it what
// travels in the q steps, is either of
//
//   w[N_j, K_i]   step l brings x[T_i, K_l] along row i and w[N_j, K_l] along column j, and adds their
//                 product: what is computed stays, the input travels. (summa_linear)
//   w[N_i, K_j]   step l brings w[N_l, K_j] along column j and makes this rank's summand of y[T_i, N_l],
//                 which rank (i, l) gets the sum of: the input stays, the output travels.
//                 (summa_linear_summed)
//
// Of two products in a row, up and down, the first form for the one and the second for the other leave the
// wide matrix between them where it is. The next step's blocks travel while this one's are multiplied.
//
// Of n = q^2 ranks each sends (q - 1) / n of
//
//                         forward        backward
//   summa_linear          |x| + |w|      2 |x| + 2 |w|
//   summa_linear_summed   |y| + |w|      |y| + 2 |w|
//
// elements: O(1 / sqrt(n)) of the matrices, where splitting one dim sends 2 (n - 1) / n of an output whatever
// n is. Sums travel in fp32.
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

// With autograd in both. Blocks of x have one shape on the ranks of a row (rows may have different numbers of
// tokens, or none), those of w on all; sums are in fp32 and rounded once. A collective of all ranks of the
// grid, and so is its backward pass.
at::Tensor summa_linear(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid);
at::Tensor summa_linear_summed(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid);

// Block (row, column) of q x q of a matrix whose sizes q divides: what a rank has of x and y, and of the
// weight of summa_linear_summed. That of summa_linear is block_of(weight, q, column, row).
at::Tensor block_of(const at::Tensor& matrix, int64_t q, int64_t row, int64_t column);

}  // namespace moebius::parallel
