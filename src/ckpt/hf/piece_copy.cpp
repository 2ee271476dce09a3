#include "ckpt/hf/piece_copy.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <cstring>

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

namespace {

// The columns with their halves exchanged; its own inverse.
at::Tensor swap_halves(const at::Tensor& matrix) {
  const int64_t half = matrix.size(-1) / 2;
  return at::cat({matrix.narrow(-1, half, half), matrix.narrow(-1, 0, half)}, -1);
}

// Where only the order of rows differs, copies bytes; an operator that goes through strides takes longer.
bool copy_rows(const Piece& piece, const at::Tensor& disk, const at::Tensor& view) {
  const bool same = disk.scalar_type() == view.scalar_type() && disk.is_contiguous() && view.is_cpu();
  if (!same || piece.transposed || piece.halves_swapped || disk.numel() == 0) return false;
  const auto* const from = static_cast<const std::byte*>(disk.const_data_ptr());
  auto* const to = static_cast<std::byte*>(view.mutable_data_ptr());
  if (piece.pairs.head_rows == 0 && view.is_contiguous()) {
    std::memcpy(to, from, disk.nbytes());
    return true;
  }
  if (view.dim() != 2 || view.stride(1) != 1) return false;
  const size_t row_bytes = disk.nbytes() / static_cast<size_t>(disk.size(0));
  const size_t stride = static_cast<size_t>(view.stride(0)) * view.element_size();
  at::Tensor order;
  if (piece.pairs.head_rows > 0) order = row_order(piece, true);
  for (int64_t row = 0; row < disk.size(0); ++row) {
    const int64_t source = order.defined() ? order.const_data_ptr<int64_t>()[row] : row;
    std::memcpy(to + static_cast<size_t>(row) * stride, from + static_cast<size_t>(source) * row_bytes,
                row_bytes);
  }
  return true;
}

}  // namespace

void copy_from_disk(const Piece& piece, const at::Tensor& disk, const at::Tensor& param) {
  const at::Tensor view = view_of(piece, param);
  if (copy_rows(piece, disk, view)) return;
  if (piece.halves_swapped)
    view.copy_(swap_halves(disk));
  else
    view.copy_(piece.pairs.head_rows > 0 ? disk.index_select(0, row_order(piece, true)) : disk);
}

at::Tensor copy_to_disk(const Piece& piece, const at::Tensor& param) {
  const at::Tensor view = view_of(piece, param);
  if (piece.halves_swapped) return swap_halves(view);
  if (piece.pairs.head_rows > 0) return view.index_select(0, row_order(piece, false).to(view.device()));
  return view.contiguous();
}

}  // namespace moebius::ckpt::hf
