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
  int64_t group = 128;  // of int4: values along an input that share a scale; a multiple of 64
  // A text or corpus; where given, the float model reads up to 32,768 tokens of it first, and the report says
  // what each weight is multiplied with. Ranges of activations are each row's own when the model runs: the
  // text decides nothing about the result.
  std::filesystem::path calibration = {};
  // Called before each weight; what it throws ends the work, which a later call goes on with.
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
  // With a calibration text, of the rows that the weight was multiplied with (0: not looked at).
  int64_t input_rows = 0;
  double input_range = 0, input_peak_ratio = 0;
  double input_error = 0;  // relative error by rounding each row to 8 bits
};

struct QuantiseResult {
  int64_t step = 0;
  std::string scheme;
  std::vector<QuantisedWeight> weights;
  std::vector<std::string> left_float;  // weights of products that stay as they are
  int64_t num_resumed = 0;              // weights that an earlier call had done
  // Of the model's tensors: as they were, as they are; and of the quantised weights alone.
  int64_t bytes_before = 0, bytes_after = 0;
  int64_t weight_bytes_before = 0, weight_bytes_after = 0;
  int64_t calibration_tokens = 0;
  double calibration_loss = 0;  // of the float model, nats per token
};

// Weights are read from the source's memory maps one at a time, and written row by row: host memory is that
// of one weight's scales and of what the system keeps of the files. Each goes to a folder beside the run to
// be made (train/quantise_spool.h) until all are done: the same call after a kill goes on there, and gives
// the same bytes. The run folder appears when it is complete; quantisation.json in it holds the result.
// UserError for an unknown scheme, a group that the kernels do not know, a checkpoint that is quantised
// already, a weight with values or with an input on the calibration text that are not finite (named), and a
// calibration text of fewer than 512 tokens.
QuantiseResult quantise_run(const QuantiseOptions& options);

}  // namespace moebius::train
