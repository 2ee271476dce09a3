// Shapes: T tokens, T_i those of a row, D model width, q rows and columns, W the width of a block.
#include "parallel/grid_axis.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <numeric>
#include <utility>
#include <vector>

#include "base/check.h"
#include "parallel/exchange.h"
#include "parallel/grid_norm.h"
#include "parallel/summa.h"

namespace moebius::parallel {
namespace {

using nn::AxisPlace;
using nn::Range;
using nn::share_of;

AxisPlace place_on(const Communicator& line) {
  return {line.size(), line.rank()};
}

// x (R, W) of each rank of the line beside each other, (R, q W).
at::Tensor gathered_columns(Communicator& line, const at::Tensor& x_RW) {
  return gather_over(line, x_RW).transpose(0, 1).reshape({x_RW.size(0), line.size() * x_RW.size(1)});
}

// Of y (R, q W) this rank's columns of the sum over the line.
at::Tensor scattered_columns(Communicator& line, const at::Tensor& y_RD) {
  const at::NoGradGuard no_grad;
  const int64_t q = line.size(), rows = y_RD.size(0), width = y_RD.size(1) / q;
  MOEBIUS_CHECK_EQ(q * width, y_RD.size(1));
  const at::Tensor parts_QRW = y_RD.detach().view({rows, q, width}).transpose(0, 1).contiguous();
  const at::Tensor part_RW = at::empty({rows, width}, y_RD.options());
  if (part_RW.numel() > 0) line.reduce_scatter(part_RW, parts_QRW).wait();
  return part_RW;
}

// How `count` rows lie on the ranks of a line: the sizes of nn::share_of.
std::vector<int64_t> row_shares(const Communicator& line, int64_t count) {
  std::vector<int64_t> shares;
  for (int rank = 0; rank < line.size(); ++rank) shares.push_back(share_of(count, {line.size(), rank}).count);
  return shares;
}

int64_t largest_share(const Communicator& line, int64_t count) {
  return (count + line.size() - 1) / line.size();
}

// The rows of all ranks of the line, whose numbers may differ by one.
at::Tensor gathered_rows(Communicator& line, const at::Tensor& x_R, int64_t count) {
  const at::NoGradGuard no_grad;
  const int64_t most = largest_share(line, count);
  std::vector<int64_t> sizes = x_R.sizes().vec();
  MOEBIUS_CHECK_EQ(sizes[0], share_of(count, place_on(line)).count, "of ", count, " rows");
  sizes[0] = most;
  const at::Tensor padded = at::zeros(sizes, x_R.options().requires_grad(false));
  padded.narrow(0, 0, x_R.size(0)).copy_(x_R.detach());
  const at::Tensor all = gather_over(line, padded);
  std::vector<at::Tensor> parts;
  for (int rank = 0; rank < line.size(); ++rank)
    parts.push_back(all[rank].narrow(0, 0, share_of(count, {line.size(), rank}).count));
  return at::cat(parts);
}

// This rank's rows of the sum over the line.
at::Tensor scattered_rows(Communicator& line, const at::Tensor& y_RW) {
  const at::NoGradGuard no_grad;
  const int64_t count = y_RW.size(0), width = y_RW.size(1), most = largest_share(line, count);
  const at::Tensor padded = at::zeros({line.size(), most, width}, y_RW.options().requires_grad(false));
  for (int rank = 0; rank < line.size(); ++rank) {
    const Range rows = share_of(count, {line.size(), rank});
    padded[rank].narrow(0, 0, rows.count).copy_(y_RW.detach().narrow(0, rows.begin, rows.count));
  }
  const at::Tensor part = at::empty({most, width}, padded.options());
  if (part.numel() > 0) line.reduce_scatter(part, padded).wait();
  return part.narrow(0, 0, share_of(count, place_on(line)).count);
}

class GridAxis final : public nn::TensorAxis {
 public:
  GridAxis(Communicator& all, Communicator& row, Communicator& column)
      : all_(all), row_(row), column_(column) {
    MOEBIUS_CHECK(row.size() == column.size() && all.size() == row.size() * column.size() &&
                      all.rank() == column.rank() * row.size() + row.rank(),
                  "rank ", all.rank(), " of ", all.size(), " in row ", column.rank(), " of ", column.size(),
                  ", column ", row.rank(), " of ", row.size());
  }

  AxisPlace place() const override { return place_on(row_); }
  AxisPlace tokens() const override { return place_on(column_); }
  bool in_blocks() const override { return true; }
  int64_t rows_between(int64_t num_tokens) const override { return share_of(num_tokens, tokens()).count; }

  at::Tensor enter(const at::Tensor& x_TW, int64_t num_tokens) const override {
    MOEBIUS_CHECK_EQ(x_TW.size(0), rows_between(num_tokens));
    return exchange(
        x_TW, [this](const at::Tensor& x) { return gathered_columns(row_, x); },
        [this](const at::Tensor& grad) { return scattered_columns(row_, grad.contiguous()); });
  }
  at::Tensor leave(const at::Tensor& y_TD) const override {
    return exchange(
        y_TD, [this](const at::Tensor& y) { return scattered_columns(row_, y.contiguous()); },
        [this](const at::Tensor& grad) { return gathered_columns(row_, grad); });
  }
  at::Tensor alike(const at::Tensor& x) const override { return with_share_of_gradient(row_, x); }
  at::Tensor shared(const at::Tensor& x) const override { return with_sum_of_gradients(row_, x); }
  at::Tensor outside(const at::Tensor& param) const override { return of_lines(param); }
  at::Tensor gather(const at::Tensor& x) const override { return gather_over(row_, x); }

  std::pair<at::Tensor, at::Tensor> add_norm(const at::Tensor& x_TW, const at::Tensor& delta_TW,
                                             const at::Tensor& weight_W, double eps) const override {
    return split_rms_norm(row_, x_TW, delta_TW, of_lines(weight_W), eps);
  }

  at::Tensor first_product(const at::Tensor& x_TW, const at::Tensor& weight_NW) const override {
    return summa_linear(x_TW, weight_NW, {row_, column_});
  }
  at::Tensor second_product(const at::Tensor& h_TN, const at::Tensor& weight_WN) const override {
    return summa_linear_summed(h_TN, weight_WN, {row_, column_});
  }

  at::Tensor of_lines(const at::Tensor& param) const override {
    return with_sum_of_gradients(column_, param);
  }
  at::Tensor sum_of_lines(const at::Tensor& x) const override {
    return exchange(
        x, [this](const at::Tensor& own) { return sum_over(column_, own); }, identity);
  }
  at::Tensor rows_of_lines(const at::Tensor& x, int64_t num_tokens) const override {
    return gathered_rows(column_, x, num_tokens);
  }

  at::Tensor to_sequences(const at::Tensor& x_TC, const std::vector<int64_t>& parts,
                          int64_t num_tokens) const override {
    return exchange(
        x_TC, [this, &parts, num_tokens](const at::Tensor& x) { return all_tokens(x, parts, num_tokens); },
        [this, parts, num_tokens](const at::Tensor& grad) { return all_columns(grad, parts, num_tokens); });
  }
  at::Tensor from_sequences(const at::Tensor& y_TC, int64_t num_tokens) const override {
    const std::vector<int64_t> parts{y_TC.size(1) * column_.size()};
    return exchange(
        y_TC, [this, &parts, num_tokens](const at::Tensor& y) { return all_columns(y, parts, num_tokens); },
        [this, parts, num_tokens](const at::Tensor& grad) { return all_tokens(grad, parts, num_tokens); });
  }

  at::Tensor leave_lookup(const at::Tensor& y_TW) const override {
    const int64_t num_tokens = y_TW.size(0);
    return exchange(
        y_TW,
        [this, num_tokens](const at::Tensor& y) {
          return swapped(scattered_rows(row_, y), share_of(num_tokens, tokens()).count);
        },
        [this, num_tokens](const at::Tensor& grad) {
          return gathered_rows(row_, swapped(grad, share_of(num_tokens, place()).count), num_tokens);
        });
  }
  at::Tensor whole_width(const at::Tensor& param_VW) const override {
    return exchange(
        param_VW, [this](const at::Tensor& param) { return gathered_columns(column_, param); },
        [this](const at::Tensor& grad) { return scattered_columns(column_, grad.contiguous()); });
  }

 private:
  // Rank (i, j) gives its rows to (j, i) and gets that one's, out_rows of them.
  at::Tensor swapped(const at::Tensor& x_RW, int64_t out_rows) const {
    const at::NoGradGuard no_grad;
    const auto partner = static_cast<size_t>(row_.rank() * row_.size() + column_.rank());
    std::vector<int64_t> in(static_cast<size_t>(all_.size())), out(in.size());
    in[partner] = x_RW.size(0);
    out[partner] = out_rows;
    const at::Tensor result = at::empty({out_rows, x_RW.size(1)}, x_RW.options().requires_grad(false));
    all_.all_to_all(result, x_RW.detach().contiguous(), out, in).wait();
    return result;
  }

  // (T_i, C) to (T, C / q): of each part of the columns rank i gets the i-th share, of the tokens of all.
  at::Tensor all_tokens(const at::Tensor& x_TC, const std::vector<int64_t>& parts, int64_t num_tokens) const {
    const at::NoGradGuard no_grad;
    const int64_t q = column_.size(), own = x_TC.size(0);
    std::vector<at::Tensor> shares;
    int64_t begin = 0;
    for (const int64_t part : parts) {
      shares.push_back(x_TC.detach().narrow(1, begin, part).unflatten(1, {q, part / q}));
      begin += part;
    }
    MOEBIUS_CHECK_EQ(begin, x_TC.size(1));
    const at::Tensor in = at::cat(shares, 2).transpose(0, 1).contiguous().flatten(0, 1);
    const at::Tensor out = at::empty({num_tokens, in.size(1)}, in.options());
    column_
        .all_to_all(out, in, row_shares(column_, num_tokens),
                    std::vector<int64_t>(static_cast<size_t>(q), own))
        .wait();
    return out;
  }

  // Back: (T, C / q) to (T_i, C).
  at::Tensor all_columns(const at::Tensor& y_TC, const std::vector<int64_t>& parts,
                         int64_t num_tokens) const {
    const at::NoGradGuard no_grad;
    const int64_t q = column_.size(), own = rows_between(num_tokens), width = y_TC.size(1);
    const at::Tensor out = at::empty({q * own, width}, y_TC.options().requires_grad(false));
    column_
        .all_to_all(out, y_TC.detach().contiguous(), std::vector<int64_t>(static_cast<size_t>(q), own),
                    row_shares(column_, num_tokens))
        .wait();
    const at::Tensor by_token_TqC = out.view({q, own, width}).transpose(0, 1);
    std::vector<at::Tensor> columns;
    int64_t begin = 0;
    for (const int64_t part : parts) {
      columns.push_back(by_token_TqC.narrow(2, begin / q, part / q).flatten(1));
      begin += part;
    }
    MOEBIUS_CHECK_EQ(begin, q * width);
    return columns.size() == 1 ? columns[0].contiguous() : at::cat(columns, 1);
  }

  Communicator &all_, &row_, &column_;
};

}  // namespace

std::shared_ptr<const nn::TensorAxis> make_grid_axis(Communicator& all, Communicator& row,
                                                     Communicator& column) {
  return std::make_shared<GridAxis>(all, row, column);
}

}  // namespace moebius::parallel
