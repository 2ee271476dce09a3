// Which part of a parameter a process holds when axes of the mesh split it, and the copies between that part
// and the whole.
//
// An axis of n ranks cuts a dim of size s into the ranges [s r / n, s (r + 1) / n): even ones where n divides
// s, else they differ by one at most. A dim made of parts that belong together row by row (query, key and
// value heads in one projection) is cut part by part, so that a rank's slice is several ranges of it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace moebius::nn {

// Where this process stands on an axis of the mesh.
struct AxisPlace {
  int size = 1;
  int rank = 0;
};

// On the axes that split parameters. `grid`: where tensor ranks form a grid (parallel.tp_mode = "2d"), the
// one of its axes along which they hold other tokens; tp is the other then.
struct Shards {
  AxisPlace ep = {}, tp = {}, grid = {};

  bool any() const { return ep.size > 1 || tp.size > 1 || grid.size > 1; }
};

struct Range {
  int64_t begin = 0, count = 0;

  bool operator==(const Range&) const = default;
};

// The rank's part of `size` elements.
Range share_of(int64_t size, const AxisPlace& place);

struct ParamSlice {
  // For each dim of the whole the ranges held, ascending; one behind the other they are the local dim. No
  // dims: the whole parameter is held.
  std::vector<std::vector<Range>> dims;

  bool is_whole() const { return dims.empty(); }
  // `dims`: of the whole.
  std::vector<int64_t> local_dims(const std::vector<int64_t>& whole_dims) const;

  bool operator==(const ParamSlice&) const = default;
};

// Elements [whole, whole + count) of the flat whole are [local, local + count) of the flat slice.
struct SliceRun {
  int64_t whole, local, count;
};

// All elements of a slice, in ascending order of `local` within each block of ranges; no run is longer than
// `most`.
std::vector<SliceRun> slice_runs(const ParamSlice& slice, const std::vector<int64_t>& whole_dims,
                                 int64_t most);

// local = whole[slice] and whole[slice] = local, with a conversion of dtype and device where they differ. A
// whole slice copies all. Sizes must fit (CHECK); autograd does not see the copies.
void copy_from_whole(const ParamSlice& slice, const at::Tensor& whole, const at::Tensor& local);
void copy_to_whole(const ParamSlice& slice, const at::Tensor& local, const at::Tensor& whole);

}  // namespace moebius::nn
