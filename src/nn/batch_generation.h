// Continuing many sequences side by side by their likeliest tokens, greedily or with a beam. Every new token
// costs a pass over the whole sequences, many of them in one batch: there is no cache, which for texts of a
// few dozen tokens (translations) is much faster than one sequence after the other. Beam search as in
// Sutskever et al. 2014, "Sequence to Sequence Learning", finished hypotheses scored by log p / length^alpha
// as in Wu et al. 2016, "Google's Neural Machine Translation System", section 7, in its usual short form.
#pragma once

#include <cstdint>
#include <vector>

#include "nn/decoder.h"

namespace moebius::nn {

struct BatchGenerateOptions {
  int64_t beams = 1;             // 1: greedy, the likeliest token at each place
  int64_t max_tokens = 100;      // of a continuation
  std::vector<int64_t> end_ids;  // that end a continuation, and are not part of it
  double length_exponent = 1.0;  // alpha; not read by greedy search
  int64_t pass_tokens = 16384;   // of sequences that pass together; memory grows with it
};

// The continuation of each prompt (at least one token each), without its prompt; of max_tokens tokens where
// it did not end. No autograd. What a sequence gets does not depend on the others but for the last bits of
// sums.
std::vector<std::vector<int64_t>> continue_all(const Decoder& decoder,
                                               const std::vector<std::vector<int64_t>>& prompts,
                                               const BatchGenerateOptions& options);

}  // namespace moebius::nn
