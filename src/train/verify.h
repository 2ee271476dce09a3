// Compares a model in the Hugging Face layout with what another implementation computed with it: a golden
// file (docs/formats/golden.md) holds a batch, the logits, losses, routing decisions and gradients of one
// pass over it, and the parameters after three steps of AdamW.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string>
#include <vector>

namespace moebius::train {

struct Comparison {
  std::string name;      // "logits", "router/1/experts", "grad/model.norm.weight"
  double error = 0;      // see `measure`
  double tolerance = 0;  // negative: shown, but not judged
  std::string measure;   // "of largest", "relative", "differ", "per mille moved"
  bool passed() const { return tolerance < 0 || error <= tolerance; }
};

struct VerifyOptions {
  std::filesystem::path model, golden;
  at::Device device = at::kCPU;
  std::string precision = "fp32";
};

struct Verification {
  std::string architecture;
  std::vector<Comparison> comparisons;
  std::vector<std::string> notes;
  bool passed() const;
};

// fp32: everything is judged, by the tolerances below. bf16: losses (1e-2) and the root mean square
// difference of the logits (5e-2 of theirs) are judged, the rest is shown. UserError when the folder is not a
// model or the golden file does not belong to it.
//
// Tolerances in fp32 (two independent implementations, in float32 and float64, differ by a tenth of them):
// logits, router logits and weights 2e-5 and gradients 5e-5 of the tensor's largest absolute value; losses
// 2e-6 relative; experts equal; of the parameters after three steps at most one entry in a thousand may
// differ by more than 1e-5, because AdamW divides a gradient near rounding by its own size.
Verification verify(const VerifyOptions& options);

}  // namespace moebius::train
