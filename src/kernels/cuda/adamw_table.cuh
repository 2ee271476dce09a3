// What the AdamW kernels for plain and for eight-bit moments share: the numbers of a step beside their
// tensors, and the way from AdamWArgs to launches.
#pragma once

#include <utility>
#include <vector>

#include "kernels/api/optimizer.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_table.h"

namespace moebius::kernels::cuda {

// Entries have scalar_index, step (lr / c1) and shrink (1 - lr * decay).
template <class Entry, int CAPACITY>
struct AdamWTable : TensorTable<Entry, CAPACITY> {
  float beta1, beta2, rest1, rest2, eps, root;  // rest = 1 - beta; root = 1 / sqrt(c2)
  const float* grad_scale;
  const float* scalars;  // AdamWArgs::scalars; null: root, step and shrink of these tables
};

// What a step multiplies by.
struct Factors {
  float step, shrink, root;
};

template <class Table>
__device__ __forceinline__ Factors factors_of(const Table& table, const typename Table::Entry& t) {
  if (table.scalars == nullptr) return {t.step, t.shrink, table.root};
  const float* own = table.scalars + 2 + 2 * t.scalar_index;
  return {own[0], own[1], table.scalars[0]};
}

// launch(combination, blocks) for every table of every combination of dtypes.
template <class Table, class CombinationOf, class EntryOf, class Launch>
void launch_adamw_tables(Table& table, const AdamWArgs& a, int combinations, int64_t piece,
                         const CombinationOf& combination_of, const EntryOf& entry_of, const Launch& launch) {
  table.beta1 = a.beta1;
  table.beta2 = a.beta2;
  table.rest1 = static_cast<float>(1.0 - a.beta1);
  table.rest2 = static_cast<float>(1.0 - a.beta2);
  table.eps = a.eps;
  table.root = adamw_root(a.correction2);
  table.grad_scale = a.grad_scale;
  table.scalars = a.scalars;
  std::vector<AdamWTensor> alike;
  for (int combination = 0; combination < combinations; ++combination) {
    alike.clear();
    for (const AdamWTensor& t : a.tensors)
      if (combination_of(t) == combination) alike.push_back(t);
    launch_tables(table, alike, piece, entry_of,
                  [&](int64_t blocks) { launch(combination, grid_size(blocks)); });
  }
}

}  // namespace moebius::kernels::cuda
