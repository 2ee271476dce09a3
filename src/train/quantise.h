// Makes a run folder whose weights are int8 out of a trained one: what `moebius quantize` does. How the
// result is stored: docs/formats/checkpoint.md, "Quantised weights"; how it computes: docs/int8.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace moebius::train {

struct QuantiseOptions {
  std::filesystem::path from, to;  // run folder or checkpoint; run folder to make
  std::string scheme = "int8-w8a8";
  std::function<void(const std::string& name, int64_t index, int64_t count)> progress = {};
};

// One weight and what became of it. Shares and errors are of all its values together.
struct QuantisedWeight {
  std::string name;
  std::vector<int64_t> dims;
  double range = 0;           // largest magnitude
  double smallest_range = 0;  // of an output channel
  double clipped_share = 0;   // of values beyond the range of their codes
  double relative_error = 0;  // norm of what rounding changes, over the norm
  // Values more than six standard deviations (of the weight) from 0, as a share; and the largest ratio of a
  // channel's range to its root mean square: 3 to 5 for normal numbers, more where few values set the scale.
  double outlier_share = 0, peak_ratio = 0;
};

struct QuantiseResult {
  int64_t step = 0;
  std::string scheme;
  std::vector<QuantisedWeight> weights;
  std::vector<std::string> left_float;  // weights of products that stay as they are
  // Of the model's tensors: as they were, as they are; and of the quantised weights alone.
  int64_t bytes_before = 0, bytes_after = 0;
  int64_t weight_bytes_before = 0, weight_bytes_after = 0;
};

// Weights are read from the source's memory maps one at a time, and written row by row: host memory is that
// of one weight's channel ranges and of what the system keeps of the files. The run folder appears when it is
// complete; quantisation.json in it holds the result. UserError for an unknown scheme, a checkpoint that is
// quantised already, and a weight with values that are not finite (named).
QuantiseResult quantise_run(const QuantiseOptions& options);

}  // namespace moebius::train
