#include "nn/kv_cache.h"

#include <ATen/ops/empty.h>

#include "base/check.h"
#include "quant/format.h"

namespace moebius::nn {

KvFormat kv_format_named(std::string_view name) {
  MOEBIUS_CHECK(name == "model" || name == "int8", "a cache of the format ", name);
  return name == "int8" ? KvFormat::int8 : KvFormat::model;
}

KvCache::KvCache(int64_t num_layers, int64_t capacity, const std::vector<int64_t>& sizes,
                 const at::TensorOptions& options, KvFormat format)
    : dtype_(options.dtype().toScalarType()), capacity_(capacity) {
  std::vector<int64_t> rows = sizes;
  rows.back() = 1;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    Held& held = layers_.emplace_back();
    held.values = at::empty(sizes, format == KvFormat::int8 ? options.dtype(at::kChar) : options);
    if (format == KvFormat::int8) held.scales = at::empty(rows, options.dtype(at::kFloat));
  }
}

KvCache KvCache::of_heads(int64_t num_layers, int64_t capacity, int64_t num_kv_heads, int64_t head_dim,
                          const at::TensorOptions& options, KvFormat format) {
  return {num_layers, capacity, {2, num_kv_heads, capacity, head_dim}, options, format};
}

KvCache KvCache::of_latents(int64_t num_layers, int64_t capacity, int64_t width,
                            const at::TensorOptions& options, KvFormat format) {
  return {num_layers, capacity, {capacity, width}, options, format};
}

int64_t KvCache::num_bytes() const {
  int64_t bytes = 0;
  for (const Held& layer : layers_)
    bytes +=
        static_cast<int64_t>(layer.values.nbytes() + (layer.scales.defined() ? layer.scales.nbytes() : 0));
  return bytes;
}

at::Tensor KvCache::put(const Held& held, const at::Tensor& fresh) const {
  const int64_t count = fresh.size(-2), all = length_ + count;
  MOEBIUS_CHECK_LE(all, capacity_);
  const auto behind = [&](const at::Tensor& tensor) { return tensor.narrow(-2, length_, count); };
  if (!held.scales.defined()) {
    behind(held.values).copy_(fresh);
    return held.values.narrow(-2, 0, all);
  }
  const quant::Quantised q = quant::quantise(fresh, quant::Granularity::per_row);
  behind(held.values).copy_(q.codes);
  behind(held.scales).copy_(q.scales);
  return quant::dequantise(held.values.narrow(-2, 0, all), held.scales.narrow(-2, 0, all), dtype_);
}

KvCache::KeysValues KvCache::append(int64_t layer, const at::Tensor& keys, const at::Tensor& values) {
  const Held& held = layers_[static_cast<size_t>(layer)];
  const auto half = [&](int64_t i) {
    return Held{held.values.select(0, i), held.scales.defined() ? held.scales.select(0, i) : at::Tensor()};
  };
  return {put(half(0), keys.transpose(0, 1)), put(half(1), values.transpose(0, 1))};
}

at::Tensor KvCache::append_latents(int64_t layer, const at::Tensor& latents) {
  return put(layers_[static_cast<size_t>(layer)], latents);
}

void KvCache::advance(int64_t count) {
  MOEBIUS_CHECK_LE(length_ + count, capacity_);
  length_ += count;
}

}  // namespace moebius::nn
