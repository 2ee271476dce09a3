#include "nn/param_slice.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/check.h"

namespace moebius::nn {
namespace {

// One range of every dim.
struct SliceBlock {
  std::vector<int64_t> whole_begin, local_begin, count;
};

std::vector<SliceBlock> blocks_of(const ParamSlice& slice) {
  std::vector<SliceBlock> blocks{{}};
  for (const std::vector<Range>& ranges : slice.dims) {
    std::vector<SliceBlock> longer;
    for (const SliceBlock& block : blocks) {
      int64_t local = 0;
      for (const Range& range : ranges) {
        SliceBlock& next = longer.emplace_back(block);
        next.whole_begin.push_back(range.begin);
        next.local_begin.push_back(local);
        next.count.push_back(range.count);
        local += range.count;
      }
    }
    blocks = std::move(longer);
  }
  return blocks;
}

at::Tensor narrowed(at::Tensor tensor, const std::vector<int64_t>& begin, const std::vector<int64_t>& count) {
  for (size_t dim = 0; dim < begin.size(); ++dim)
    tensor = tensor.narrow(static_cast<int64_t>(dim), begin[dim], count[dim]);
  return tensor;
}

void check_sizes(const ParamSlice& slice, const at::Tensor& whole, const at::Tensor& local) {
  const std::vector<int64_t> expected = slice.local_dims(whole.sizes().vec());
  MOEBIUS_CHECK(local.sizes() == at::IntArrayRef(expected), "a slice of ", whole.sizes(), " has ",
                local.sizes(), ", not ", at::IntArrayRef(expected));
}

// Runs of one block: the innermost dim that it does not span, with all within.
void add_runs(const SliceBlock& block, const std::vector<int64_t>& whole_dims,
              const std::vector<int64_t>& local_dims, int64_t most, std::vector<SliceRun>& runs) {
  const size_t rank = whole_dims.size();
  if (std::count(block.count.begin(), block.count.end(), 0) > 0) return;
  size_t cut = rank - 1;
  int64_t inner = 1;
  while (cut > 0 && block.count[cut] == whole_dims[cut]) inner *= whole_dims[cut--];
  const int64_t length = block.count[cut] * inner;
  std::vector<int64_t> index(cut, 0);  // within the block, of the dims outside
  for (;;) {
    int64_t whole = 0, local = 0;
    for (size_t dim = 0; dim <= cut; ++dim) {
      const int64_t at = dim < cut ? index[dim] : 0;
      whole = whole * whole_dims[dim] + block.whole_begin[dim] + at;
      local = local * local_dims[dim] + block.local_begin[dim] + at;
    }
    for (int64_t done = 0; done < length; done += most)
      runs.push_back({whole * inner + done, local * inner + done, std::min(most, length - done)});
    size_t dim = cut;
    while (dim > 0 && ++index[dim - 1] == block.count[dim - 1]) index[--dim] = 0;
    if (dim == 0) return;
  }
}

}  // namespace

Range share_of(int64_t size, const AxisPlace& place) {
  MOEBIUS_CHECK(place.rank >= 0 && place.rank < place.size, "rank ", place.rank, " of ", place.size);
  const int64_t begin = size * place.rank / place.size;
  return {begin, size * (place.rank + 1) / place.size - begin};
}

std::vector<int64_t> ParamSlice::local_dims(const std::vector<int64_t>& whole_dims) const {
  if (is_whole()) return whole_dims;
  MOEBIUS_CHECK_EQ(dims.size(), whole_dims.size());
  std::vector<int64_t> local;
  for (const std::vector<Range>& ranges : dims) {
    int64_t count = 0;
    for (const Range& range : ranges) count += range.count;
    local.push_back(count);
  }
  return local;
}

std::vector<SliceRun> slice_runs(const ParamSlice& slice, const std::vector<int64_t>& whole_dims,
                                 int64_t most) {
  ParamSlice all = slice;
  if (slice.is_whole())
    for (const int64_t dim : whole_dims) all.dims.push_back({{0, dim}});
  std::vector<SliceRun> runs;
  const std::vector<int64_t> local_dims = all.local_dims(whole_dims);
  for (const SliceBlock& block : blocks_of(all)) add_runs(block, whole_dims, local_dims, most, runs);
  return runs;
}

void copy_from_whole(const ParamSlice& slice, const at::Tensor& whole, const at::Tensor& local) {
  const at::NoGradGuard no_grad;
  check_sizes(slice, whole, local);
  for (const SliceBlock& block : blocks_of(slice))
    narrowed(local, block.local_begin, block.count).copy_(narrowed(whole, block.whole_begin, block.count));
}

void copy_to_whole(const ParamSlice& slice, const at::Tensor& local, const at::Tensor& whole) {
  const at::NoGradGuard no_grad;
  check_sizes(slice, whole, local);
  for (const SliceBlock& block : blocks_of(slice))
    narrowed(whole, block.whole_begin, block.count).copy_(narrowed(local, block.local_begin, block.count));
}

}  // namespace moebius::nn
