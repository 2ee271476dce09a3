// What the tokens that a generation has passed so far leave to later ones, one sequence: keys and values of
// every head, or a latent vector (nn/latent_attention.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moebius::nn {

class KvCache {
 public:
  static KvCache of_heads(int64_t num_layers, int64_t capacity, int64_t num_kv_heads, int64_t head_dim,
                          const at::TensorOptions& options);
  static KvCache of_latents(int64_t num_layers, int64_t capacity, int64_t width,
                            const at::TensorOptions& options);

  int64_t length() const { return length_; }      // tokens held
  int64_t capacity() const { return capacity_; }  // tokens that fit
  int64_t num_bytes() const;

  // Puts the keys and values of `count` new tokens behind those held, and returns all of them with shape
  // (Hk, length + count, d). kv: (count, Hk, d) each. The length grows only with advance().
  struct KeysValues {
    at::Tensor keys, values;
  };
  KeysValues append(int64_t layer, const at::Tensor& keys, const at::Tensor& values);
  // The same for latents: (count, width) come in, (length + count, width) come back.
  at::Tensor append_latents(int64_t layer, const at::Tensor& latents);
  void advance(int64_t count);

 private:
  explicit KvCache(int64_t capacity) : capacity_(capacity) {}

  std::vector<at::Tensor> layers_;  // (2, Hk, capacity, d), or (capacity, width)
  int64_t capacity_, length_ = 0;
};

}  // namespace moebius::nn
