// Continuing a sequence of tokens with a decoder, one token after the other.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "nn/decoder.h"

namespace moebius::nn {

struct SamplingOptions {
  double temperature = 1.0;  // divides the logits; 0: always the likeliest token (the lowest id of equals)
  int64_t top_k = 0;         // only the k likeliest; 0: all
  double top_p = 1.0;        // only the likeliest whose probabilities reach p together (Holtzman et al. 2020)
  uint64_t seed = 1;
};

// The token drawn from logits_V (fp32 on the CPU) as the index-th draw of this seed: a pure function.
int64_t sample_token(const at::Tensor& logits_V, const SamplingOptions& options, uint64_t index);

// How long generate() took for what.
struct GenerationTimes {
  int64_t prompt_tokens = 0, tokens = 0;
  double prompt_seconds = 0;  // until the first token was there
  double seconds = 0;         // for the others
};

struct GenerateOptions {
  SamplingOptions sampling;
  int64_t max_tokens = 100;
  KvFormat cache = KvFormat::model;
  bool use_cache = true;  // false: the whole sequence is passed again for every token (slow; for comparison)
  GenerationTimes* times = nullptr;  // filled in unless null
};

// Calls on_token for each new token; generation ends when it returns false or after max_tokens. `prompt` has
// at least one token.
void generate(const Decoder& decoder, const std::vector<int64_t>& prompt, const GenerateOptions& options,
              const std::function<bool(int64_t token)>& on_token);

// Memory of a decoder's weights in this process.
struct WeightBytes {
  int64_t held = 0;
  // Of the weights of products, which may be integers: with their scales, and how many values they are.
  int64_t products = 0, product_values = 0;
  int64_t read_per_token = 0;  // when one token is passed at a time: of experts those that it is sent to
};
WeightBytes weight_bytes(const Decoder& decoder);

}  // namespace moebius::nn
