// Shapes: T, K, N of this rank's blocks; q steps.
#include "parallel/summa.h"

#include <ATen/core/grad_mode.h>
#include <ATen/core/ivalue.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/mm.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <utility>

#include "base/check.h"

namespace moebius::parallel {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The blocks of all ranks of a line, one after the other; each is on its way while the one before is used.
class Passing {
 public:
  Passing(Communicator& line, const at::Tensor& own) : line_(line), own_(own.detach().contiguous()) {
    start(0);
  }

  // Block `step`, from the rank of that number.
  at::Tensor take(int step) {
    pending_.wait();
    const at::Tensor block = next_;
    if (step + 1 < line_.size()) start(step + 1);
    return block;
  }

 private:
  void start(int step) {
    next_ = step == line_.rank() ? own_ : at::empty_like(own_);
    if (own_.numel() > 0) pending_ = line_.broadcast(next_, step);
  }

  Communicator& line_;
  at::Tensor own_, next_;
  Pending pending_;
};

// Of `parts` (q, ...) the sum over the ranks of the line of the part of this rank's number.
at::Tensor summed_part(Communicator& line, const at::Tensor& parts) {
  const at::Tensor sum = at::empty(parts.sizes().slice(1), parts.options());
  if (sum.numel() > 0) line.reduce_scatter(sum, parts).wait();
  return sum;
}

// Room in fp32 for a summand of each block of a line of blocks like this one.
at::Tensor room_for_parts(const Communicator& line, const at::Tensor& block) {
  return at::empty({line.size(), block.size(0), block.size(1)},
                   block.options().dtype(at::kFloat).requires_grad(false));
}

struct GridHolder final : torch::CustomClassHolder {
  explicit GridHolder(const Grid& g) : grid(g) {}
  Grid grid;
};

void add_to(at::Tensor& sum, const at::Tensor& part) {
  const at::Tensor wide = part.to(at::kFloat);
  sum = sum.defined() ? sum.add_(wide) : wide;
}

struct Gradients {
  at::Tensor x_TK, weight_NK;  // undefined where not wanted
};

// w[N_j, K_i]: the inputs travel. In the backward pass each rank has a summand of every block of its row of
// x, and of its column of w.
struct InputTravels {
  static at::Tensor forward(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid) {
    Passing inputs(grid.row, x_TK), weights(grid.column, weight_NK);
    at::Tensor sum_TN;
    for (int step = 0; step < grid.row.size(); ++step) {
      const at::Tensor x = inputs.take(step), weight = weights.take(step);
      add_to(sum_TN, at::mm(x, weight.t()));
    }
    return sum_TN.to(x_TK.scalar_type());
  }

  static Gradients backward(const at::Tensor& x_TK, const at::Tensor& weight_NK, const at::Tensor& grad_TN,
                            const Grid& grid, bool of_x, bool of_weight) {
    Gradients gradients;
    if (of_x) {
      Passing weights(grid.column, weight_NK);
      const at::Tensor parts_QTK = room_for_parts(grid.row, x_TK);
      for (int step = 0; step < grid.row.size(); ++step)
        parts_QTK[step].copy_(at::mm(grad_TN, weights.take(step)));
      gradients.x_TK = summed_part(grid.row, parts_QTK).to(x_TK.scalar_type());
    }
    if (of_weight) {
      Passing inputs(grid.row, x_TK);
      const at::Tensor parts_QNK = room_for_parts(grid.column, weight_NK);
      for (int step = 0; step < grid.column.size(); ++step)
        parts_QNK[step].copy_(at::mm(grad_TN.t(), inputs.take(step)));
      gradients.weight_NK = summed_part(grid.column, parts_QNK).to(weight_NK.scalar_type());
    }
    return gradients;
  }
};

// w[N_i, K_j]: the output travels, and in the backward pass its gradient, once for both of what follows from
// it.
struct OutputTravels {
  static at::Tensor forward(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid) {
    Passing weights(grid.column, weight_NK);
    const at::Tensor parts_QTN = at::empty({grid.row.size(), x_TK.size(0), weight_NK.size(0)},
                                           x_TK.options().dtype(at::kFloat).requires_grad(false));
    for (int step = 0; step < grid.row.size(); ++step)
      parts_QTN[step].copy_(at::mm(x_TK, weights.take(step).t()));
    return summed_part(grid.row, parts_QTN).to(x_TK.scalar_type());
  }

  static Gradients backward(const at::Tensor& x_TK, const at::Tensor& weight_NK, const at::Tensor& grad_TN,
                            const Grid& grid, bool of_x, bool of_weight) {
    Passing grads(grid.row, grad_TN);
    std::optional<Passing> weights;
    if (of_x) weights.emplace(grid.column, weight_NK);
    at::Tensor sum_TK, parts_QNK;
    if (of_weight) parts_QNK = room_for_parts(grid.column, weight_NK);
    for (int step = 0; step < grid.row.size(); ++step) {
      const at::Tensor grad = grads.take(step);
      if (of_x) add_to(sum_TK, at::mm(grad, weights->take(step)));
      if (of_weight) parts_QNK[step].copy_(at::mm(grad.t(), x_TK));
    }
    Gradients gradients;
    if (of_x) gradients.x_TK = sum_TK.to(x_TK.scalar_type());
    if (of_weight) gradients.weight_NK = summed_part(grid.column, parts_QNK).to(weight_NK.scalar_type());
    return gradients;
  }
};

template <class Form>
class SummaLinear : public torch::autograd::Function<SummaLinear<Form>> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x_TK, const at::Tensor& weight_NK,
                            const c10::intrusive_ptr<GridHolder>& holder) {
    ctx->save_for_backward({x_TK, weight_NK});
    ctx->saved_data["grid"] = at::IValue::make_capsule(holder);
    return Form::forward(x_TK, weight_NK, holder->grid);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto holder = c10::static_intrusive_pointer_cast<GridHolder>(ctx->saved_data["grid"].toCapsule());
    const Gradients gradients = Form::backward(saved[0], saved[1], grads[0].contiguous(), holder->grid,
                                               ctx->needs_input_grad(0), ctx->needs_input_grad(1));
    return {gradients.x_TK, gradients.weight_NK, {}};
  }
};

template <class Form>
at::Tensor product(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid) {
  MOEBIUS_CHECK_EQ(grid.row.size(), grid.column.size(), "a grid that is no square");
  MOEBIUS_CHECK(x_TK.dim() == 2 && weight_NK.dim() == 2 && x_TK.size(1) == weight_NK.size(1) &&
                    x_TK.scalar_type() == weight_NK.scalar_type(),
                "blocks ", x_TK.sizes(), " ", x_TK.scalar_type(), " and ", weight_NK.sizes(), " ",
                weight_NK.scalar_type());
  if (!at::GradMode::is_enabled() || !(x_TK.requires_grad() || weight_NK.requires_grad()))
    return Form::forward(x_TK.detach(), weight_NK.detach(), grid);
  return SummaLinear<Form>::apply(x_TK, weight_NK, c10::make_intrusive<GridHolder>(grid));
}

}  // namespace

at::Tensor summa_linear(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid) {
  return product<InputTravels>(x_TK, weight_NK, grid);
}

at::Tensor summa_linear_summed(const at::Tensor& x_TK, const at::Tensor& weight_NK, const Grid& grid) {
  return product<OutputTravels>(x_TK, weight_NK, grid);
}

at::Tensor block_of(const at::Tensor& matrix, int64_t q, int64_t row, int64_t column) {
  MOEBIUS_CHECK(matrix.dim() == 2 && matrix.size(0) % q == 0 && matrix.size(1) % q == 0, matrix.sizes(),
                " in blocks of a grid of ", q, " x ", q);
  const int64_t rows = matrix.size(0) / q, columns = matrix.size(1) / q;
  return matrix.narrow(0, row * rows, rows).narrow(1, column * columns, columns).contiguous();
}

}  // namespace moebius::parallel
