#include "nn/param.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <span>

#include "base/check.h"
#include "base/parallel.h"
#include "base/philox.h"

namespace moebius::nn {
namespace {

void fill_normal(const at::Tensor& cpu_f32, uint64_t seed, const std::string& name, double std) {
  const Philox random(seed, "init/" + name);
  float* data = cpu_f32.mutable_data_ptr<float>();
  const auto scale = static_cast<float>(std);
  // Ranges begin at whole Philox blocks, so the split does not change the values.
  parallel_for(0, (cpu_f32.numel() + 3) / 4, 4096, [&](int64_t begin, int64_t end) {
    const int64_t first = 4 * begin, last = std::min(4 * end, cpu_f32.numel());
    random.fill_normal(std::span<float>(data + first, static_cast<size_t>(last - first)),
                       static_cast<uint64_t>(first));
    for (int64_t i = first; i < last; ++i) data[i] *= scale;
  });
}

// The same values of a slice: run by run, each at its place in the whole.
void fill_normal_slice(const at::Tensor& cpu_f32, uint64_t seed, const Param& param) {
  const Philox random(seed, "init/" + param.spec.name);
  float* data = cpu_f32.mutable_data_ptr<float>();
  const auto scale = static_cast<float>(param.spec.init.std);
  const std::vector<SliceRun> runs = slice_runs(param.slice, param.spec.dims, 1 << 14);
  const auto count = static_cast<int64_t>(runs.size());
  const int64_t mean = count > 0 ? std::max<int64_t>(1, cpu_f32.numel() / count) : 1;
  parallel_for(0, count, std::max<int64_t>(1, (1 << 14) / mean), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const SliceRun& run = runs[static_cast<size_t>(i)];
      const std::span<float> out(data + run.local, static_cast<size_t>(run.count));
      random.fill_normal(out, static_cast<uint64_t>(run.whole));
      for (float& value : out) value *= scale;
    }
  });
}

ParamSlice slice_of(const ParamSpec& spec, const Shards& shards) {
  const AxisMap& map = spec.sharding;
  const bool by_ep = map.ep >= 0 && shards.ep.size > 1, by_tp = map.tp >= 0 && shards.tp.size > 1,
             on_grid = shards.grid.size > 1, by_grid = map.grid >= 0 && on_grid,
             by_stream = map.stream >= 0 && on_grid;
  ParamSlice slice;
  if (!by_ep && !by_tp && !by_grid && !by_stream) return slice;
  MOEBIUS_CHECK((!by_ep || !by_tp || map.ep != map.tp) && (!by_grid || !by_tp || map.grid != map.tp) &&
                    (!by_grid || !by_ep),
                "two axes split one dim of ", spec.name);
  for (const int64_t dim : spec.dims) slice.dims.push_back({{0, dim}});
  const auto dim_of = [&](int dim) {
    MOEBIUS_CHECK_LT(static_cast<size_t>(dim), spec.dims.size(), "of ", spec.name);
    return static_cast<size_t>(dim);
  };
  const auto split_evenly = [&](int dim, const AxisPlace& place) {
    slice.dims[dim_of(dim)] = {share_of(spec.dims[dim_of(dim)], place)};
  };
  if (by_ep) split_evenly(map.ep, shards.ep);
  if (by_grid) split_evenly(map.grid, shards.grid);
  if (by_stream) split_evenly(map.stream, shards.tp);
  if (by_tp) {
    const size_t dim = dim_of(map.tp);
    const std::vector<int64_t> parts = spec.tp_parts.empty() ? std::vector{spec.dims[dim]} : spec.tp_parts;
    std::vector<Range>& ranges = slice.dims[dim];
    ranges.clear();
    int64_t begin = 0;
    for (const int64_t part : parts) {
      Range range = share_of(part, shards.tp);
      range.begin += begin;
      ranges.push_back(range);
      begin += part;
    }
    MOEBIUS_CHECK_EQ(begin, spec.dims[dim], "parts of ", spec.name);
  }
  return slice;
}

int64_t product_of(const std::vector<int64_t>& dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) count *= dim;
  return count;
}

}  // namespace

const char* name_of(ParamClass klass) {
  switch (klass) {
    case ParamClass::expert:
      return "expert";
    case ParamClass::dense:
      return "dense";
    case ParamClass::embedding:
      return "embedding";
    case ParamClass::router:
      return "router";
    case ParamClass::norm:
      return "norm";
  }
  return "";
}

bool counts_once(const AxisMap& sharding, const Shards& shards) {
  const bool on_grid = shards.grid.size > 1;
  const bool split_by_tp = sharding.tp >= 0 || (on_grid && sharding.stream >= 0),
             // Experts are dealt out along this axis of a grid (parallel/layout.h).
      split_by_grid = sharding.grid >= 0 || sharding.ep >= 0;
  return (shards.tp.rank == 0 || split_by_tp) && (shards.grid.rank == 0 || split_by_grid);
}

int64_t ParamSpec::num_elements() const {
  return product_of(dims);
}

int64_t Param::num_local_elements() const {
  return product_of(local_dims());
}

Param& ParamTable::declare(ParamSpec spec) {
  MOEBIUS_CHECK(find(spec.name) == nullptr, "parameter ", spec.name, " is declared twice");
  Param& param = params_.emplace_back(Param{std::move(spec), {}});
  param.slice = slice_of(param.spec, shards_);
  return param;
}

void ParamTable::split(const Shards& shards) {
  shards_ = shards;
  for (Param& param : params_) {
    MOEBIUS_CHECK(!param.value.defined(), param.spec.name, " has its memory already");
    param.slice = slice_of(param.spec, shards);
  }
}

void ParamTable::allocate(at::ScalarType dtype, at::Device device) {
  for (Param& param : params_) {
    const at::ScalarType own = param.spec.is_fp32 ? at::kFloat : dtype;
    param.value = at::empty(param.local_dims(), at::TensorOptions().dtype(own).device(device));
    if (!param.spec.is_buffer) param.value.set_requires_grad(true);
  }
}

void ParamTable::initialise(uint64_t seed) {
  const at::NoGradGuard no_grad;
  for (Param& param : params_) {
    const Init& init = param.spec.init;
    switch (init.kind) {
      case Init::Kind::ones:
        param.value.fill_(1);
        break;
      case Init::Kind::zeros:
        param.value.zero_();
        break;
      case Init::Kind::normal: {
        at::Tensor values = param.value;
        const bool in_place = values.is_cpu() && values.scalar_type() == at::kFloat;
        if (!in_place) values = at::empty(param.local_dims(), at::TensorOptions().dtype(at::kFloat));
        if (param.slice.is_whole()) {
          fill_normal(values, seed, param.spec.name, init.std);
        } else {
          fill_normal_slice(values, seed, param);
        }
        if (!in_place) param.value.copy_(values);
        break;
      }
    }
  }
}

Param* ParamTable::find(const std::string& name) {
  for (Param& param : params_)
    if (param.spec.name == name) return &param;
  return nullptr;
}

int64_t ParamTable::num_elements() const {
  int64_t count = 0;
  for (const Param& param : params_)
    if (!param.spec.is_buffer) count += param.spec.num_elements();
  return count;
}

int64_t ParamTable::num_elements(ParamClass klass) const {
  int64_t count = 0;
  for (const Param& param : params_)
    if (!param.spec.is_buffer && param.spec.klass == klass) count += param.spec.num_elements();
  return count;
}

int64_t ParamTable::num_local_elements() const {
  int64_t count = 0;
  for (const Param& param : params_)
    if (!param.spec.is_buffer) count += param.num_local_elements();
  return count;
}

}  // namespace moebius::nn
