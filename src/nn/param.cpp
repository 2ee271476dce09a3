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

int64_t ParamSpec::num_elements() const {
  int64_t count = 1;
  for (const int64_t dim : dims) count *= dim;
  return count;
}

Param& ParamTable::declare(ParamSpec spec) {
  MOEBIUS_CHECK(find(spec.name) == nullptr, "parameter ", spec.name, " is declared twice");
  return params_.emplace_back(Param{std::move(spec), {}});
}

void ParamTable::allocate(at::ScalarType dtype, at::Device device) {
  for (Param& param : params_) {
    const at::ScalarType own = param.spec.is_fp32 ? at::kFloat : dtype;
    param.value = at::empty(param.spec.dims, at::TensorOptions().dtype(own).device(device));
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
        if (!in_place) values = at::empty(param.spec.dims, at::TensorOptions().dtype(at::kFloat));
        fill_normal(values, seed, param.spec.name, init.std);
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

}  // namespace moebius::nn
