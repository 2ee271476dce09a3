// What the tokens that a generation has passed so far leave to later ones, one sequence: keys and values of
// every head, or a latent vector (nn/latent_attention.h). They are held as they come, or in int8 with a scale
// for each token and head (each token, for latents), a little more than half of bf16: then a reader gets what
// the codes stand for, of one layer at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string_view>
#include <vector>

namespace moebius::nn {

enum class KvFormat : uint8_t {
  model,  // the model's dtype
  int8,
};

// "model" or "int8".
KvFormat kv_format_named(std::string_view name);

class KvCache {
 public:
  static KvCache of_heads(int64_t num_layers, int64_t capacity, int64_t num_kv_heads, int64_t head_dim,
                          const at::TensorOptions& options, KvFormat format = KvFormat::model);
  static KvCache of_latents(int64_t num_layers, int64_t capacity, int64_t width,
                            const at::TensorOptions& options, KvFormat format = KvFormat::model);

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
  KvCache(int64_t num_layers, int64_t capacity, const std::vector<int64_t>& sizes,
          const at::TensorOptions& options, KvFormat format);

  struct Held {
    at::Tensor values;  // (..., capacity, d): the model's dtype or codes
    at::Tensor scales;  // (..., capacity, 1) fp32; undefined for the model's dtype
  };
  // Puts fresh (..., count, d) behind the tokens of `held`, and returns all, in the model's dtype.
  at::Tensor put(const Held& held, const at::Tensor& fresh) const;

  std::vector<Held> layers_;  // (2, Hk, capacity, d), or (capacity, width)
  at::ScalarType dtype_;
  int64_t capacity_, length_ = 0;
};

}  // namespace moebius::nn
