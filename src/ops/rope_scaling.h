// Frequencies of rotary positions for contexts longer than a model was trained for. Names and formulas are
// those of Transformers' modeling_rope_utils.py, so that its models keep their positions:
//   linear   all frequencies divided by `factor` (Chen et al. 2023, "Position Interpolation")
//   dynamic  base * (factor * s / c - (factor - 1))^(d / (d - 2)) with s the longer of the sequence seen and
//            the original context c: nothing changes up to c ("NTK-aware", bloc97 and emozilla 2023)
//   yarn     a ramp over the channels between kept and divided frequencies, and a factor on the rotated
//            vectors (Peng et al. 2023, "YaRN")
//   llama3   kept below one wavelength, divided above another, a blend between (Meta 2024, Llama 3.1)
#pragma once

#include <cstdint>
#include <vector>

namespace moebius::ops {

struct RopeScaling {
  enum class Kind : uint8_t { none, linear, dynamic, yarn, llama3 };
  Kind kind = Kind::none;
  double factor = 1.0;
  int64_t original_context = 0;  // tokens; unused by none and linear
  double beta_fast = 32.0, beta_slow = 1.0;
  double mscale = 0.0, mscale_all_dim = 0.0;  // 0: absent
  double attention_factor = 0.0;              // 0: by the formula
  bool truncate = true;
  double low_freq_factor = 1.0, high_freq_factor = 4.0;
};

// Radians per position of each of dim / 2 pairs. `context`: tokens of the longest sequence, for dynamic.
std::vector<double> rope_frequencies(int64_t dim, double theta, const RopeScaling& scaling, int64_t context);

// The factor on rotated queries and keys; 1 but for yarn.
double rope_attention_factor(const RopeScaling& scaling);

// The factor on the scores of latent attention: (0.1 * mscale_all_dim * ln(factor) + 1)^2 where that is
// given. (DeepSeek-AI 2024, "DeepSeek-V2", in its published code)
double rope_score_factor(const RopeScaling& scaling);

}  // namespace moebius::ops
