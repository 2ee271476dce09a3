#include "nn/kv_cache.h"

#include <ATen/ops/empty.h>

#include "base/check.h"

namespace moebius::nn {

KvCache KvCache::of_heads(int64_t num_layers, int64_t capacity, int64_t num_kv_heads, int64_t head_dim,
                          const at::TensorOptions& options) {
  KvCache cache(capacity);
  for (int64_t layer = 0; layer < num_layers; ++layer)
    cache.layers_.push_back(at::empty({2, num_kv_heads, capacity, head_dim}, options));
  return cache;
}

KvCache KvCache::of_latents(int64_t num_layers, int64_t capacity, int64_t width,
                            const at::TensorOptions& options) {
  KvCache cache(capacity);
  for (int64_t layer = 0; layer < num_layers; ++layer)
    cache.layers_.push_back(at::empty({capacity, width}, options));
  return cache;
}

int64_t KvCache::num_bytes() const {
  int64_t bytes = 0;
  for (const at::Tensor& layer : layers_) bytes += static_cast<int64_t>(layer.nbytes());
  return bytes;
}

KvCache::KeysValues KvCache::append(int64_t layer, const at::Tensor& keys, const at::Tensor& values) {
  const int64_t count = keys.size(0);
  MOEBIUS_CHECK_LE(length_ + count, capacity_);
  const at::Tensor& held = layers_[static_cast<size_t>(layer)];
  const at::Tensor all_keys = held.select(0, 0), all_values = held.select(0, 1);
  all_keys.narrow(1, length_, count).copy_(keys.transpose(0, 1));
  all_values.narrow(1, length_, count).copy_(values.transpose(0, 1));
  return {all_keys.narrow(1, 0, length_ + count), all_values.narrow(1, 0, length_ + count)};
}

at::Tensor KvCache::append_latents(int64_t layer, const at::Tensor& latents) {
  const int64_t count = latents.size(0);
  MOEBIUS_CHECK_LE(length_ + count, capacity_);
  const at::Tensor& held = layers_[static_cast<size_t>(layer)];
  held.narrow(0, length_, count).copy_(latents);
  return held.narrow(0, 0, length_ + count);
}

void KvCache::advance(int64_t count) {
  MOEBIUS_CHECK_LE(length_ + count, capacity_);
  length_ += count;
}

}  // namespace moebius::nn
