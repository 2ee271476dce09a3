// Lists of tensors as parameters of kernels: a launch takes a table of some of them, each block works on one
// piece of one. Host and device find their way with the same code, so that it is tested without a GPU.
#pragma once

#include <cstdint>

#include "kernels/cuda/geometry.h"
#include "kernels/cuda/host_device.h"

namespace moebius::kernels::cuda {

template <class ENTRY, int CAPACITY>
struct TensorTable {
  using Entry = ENTRY;
  static constexpr int kCapacity = CAPACITY;
  Entry tensors[CAPACITY];
  int first_block[CAPACITY];
  int count;
};

// The tensor of a block: index of the last entry of first_block that is at most `block`.
template <class Table>
MOEBIUS_HOST_DEVICE int find_tensor(const Table& table, int block) {
  int low = 0, high = table.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (table.first_block[middle] <= block) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// launch(blocks) for as many tables as the list takes; each is `table` with other tensors. A block has
// `piece` elements; tensors without any are left out. entry_of(tensor): what the table holds of it.
template <class Table, class List, class EntryOf, class Launch>
void launch_tables(Table& table, const List& tensors, int64_t piece, const EntryOf& entry_of,
                   const Launch& launch) {
  constexpr int64_t kMostBlocks = int64_t{1} << 30;
  int64_t blocks = 0;
  table.count = 0;
  const auto flush = [&] {
    if (table.count > 0) launch(blocks);
    table.count = 0;
    blocks = 0;
  };
  for (const auto& tensor : tensors) {
    if (tensor.size == 0) continue;
    const int64_t pieces = ceil_div(tensor.size, piece);
    if (table.count == Table::kCapacity || blocks + pieces > kMostBlocks) flush();
    table.tensors[table.count] = entry_of(tensor);
    table.first_block[table.count++] = static_cast<int>(blocks);
    blocks += pieces;
  }
  flush();
}

}  // namespace moebius::kernels::cuda
