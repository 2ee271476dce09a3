#include "ckpt/hf/piece.h"

#include <ATen/ops/empty.h>

#include "base/check.h"

namespace moebius::ckpt::hf {
namespace {

// Row of our order that each row on disk goes to (or, with `inverse`, comes from).
at::Tensor row_order(const Piece& piece, bool inverse) {
  const int64_t num_rows = piece.shape.front();
  const RotaryPairs& pairs = piece.pairs;
  MOEBIUS_CHECK(num_rows % pairs.head_rows == 0, piece.name, ": ", num_rows, " rows in heads of ",
                pairs.head_rows);
  at::Tensor order = at::empty({num_rows}, at::kLong);
  auto* const data = order.mutable_data_ptr<int64_t>();
  for (int64_t row = 0; row < num_rows; ++row) data[row] = row;
  const int64_t half = pairs.dim / 2;
  for (int64_t head = 0; head < num_rows; head += pairs.head_rows)
    for (int64_t i = 0; i < half; ++i)
      for (int64_t part = 0; part < 2; ++part) {
        const int64_t on_disk = head + pairs.begin + 2 * i + part,
                      ours = head + pairs.begin + i + part * half;
        data[inverse ? ours : on_disk] = inverse ? on_disk : ours;
      }
  return order;
}

}  // namespace

int64_t Piece::num_elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

at::Tensor view_of(const Piece& piece, const at::Tensor& param) {
  at::Tensor view = param.detach();
  if (piece.expert >= 0) view = view.select(0, piece.expert);
  // Rows of the view: the last dim but one of what is on disk, or the only one.
  const std::vector<int64_t>& shape = piece.shape;
  const bool packed = piece.expert < 0 && shape.size() == 3;
  if (!packed) {
    const int64_t rows = piece.transposed && shape.size() == 2 ? shape[1] : (shape.empty() ? 1 : shape[0]);
    view = view.slice(0, piece.row_begin, piece.row_begin + piece.row_step * (rows - 1) + 1, piece.row_step);
  }
  if (piece.transposed) view = view.transpose(-2, -1);
  MOEBIUS_CHECK(view.sizes() == at::IntArrayRef(shape), piece.name, ": ", view.sizes(), " of ", piece.param);
  return view;
}

void copy_from_disk(const Piece& piece, const at::Tensor& disk, const at::Tensor& param) {
  const at::Tensor view = view_of(piece, param);
  view.copy_(piece.pairs.head_rows > 0 ? disk.index_select(0, row_order(piece, true)) : disk);
}

at::Tensor copy_to_disk(const Piece& piece, const at::Tensor& param) {
  const at::Tensor view = view_of(piece, param);
  if (piece.pairs.head_rows > 0) return view.index_select(0, row_order(piece, false).to(view.device()));
  return view.contiguous();
}

}  // namespace moebius::ckpt::hf
