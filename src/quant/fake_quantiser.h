// Quantisation-aware training of a model: its products see weights and activations on the grid of the integer
// format, and what stands in for rounding, how ranges are chosen and what is remembered between steps is
// here.
//
//   FakeQuantiser quantiser(options);
//   param.product = quantiser.add(param.spec.name, param.value);          for every weight that is quantised
//   quantiser.begin_step(step, 1.0);
//   for each micro-batch: quantiser.begin_micro(i); forward and backward
//   quantiser.end_step(clip_scale);                                       before the weights change
//
// A pass of a step is a pure function of what the step began with: ranges that run and errors that are
// carried change in end_step only, so that layers may be computed again in the backward pass. Weights' ranges
// are taken from the weights as they are; static activations' ranges run over the steps, or are learned
// beside the weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "quant/noise.h"
#include "quant/product.h"
#include "quant/range.h"

namespace moebius::quant {

struct FakeQuantiserOptions {
  int weight_bits = 8;
  int activation_bits = 8;  // 0: activations stay floats
  Sharing weight_sharing = Sharing::row;
  bool per_token = true;   // activations have a range per token, from its values; else one that is remembered
  RangeOptions range;      // of weights and static activations; `bits` is not read
  bool learned = false;    // steps are learned, beginning with the range of least mean square error
  double momentum = 0.95;  // of running ranges, per step

  enum class Compensation : uint8_t {
    none,      // all elements are rounded
    uniform,   // noise instead of rounding on a share of the elements (quant/noise.h)
    gaussian,  // the same with the other noise
    feedback   // weights: the error of the step before is added before rounding (Aji and Heafield 2020,
               // "Compressing Neural Machine Translation Models with 4-bit Precision")
  };
  Compensation compensation = Compensation::none;
  double share = 1;
  bool noisy_activations = true;  // noise on activations too
  uint64_t seed = 1;
};

// A tensor that is part of the state between steps, or a learned step.
struct QuantState {
  std::string name;
  at::Tensor tensor;
};

class FakeQuantiser {
 public:
  enum class Mode : uint8_t {
    floating,    // products are those of floats
    observing,   // the same, and running ranges take part
    training,    // rounding or what stands in for it; running ranges take part
    evaluating,  // hard rounding; nothing is remembered
  };

  explicit FakeQuantiser(const FakeQuantiserOptions& options);
  ~FakeQuantiser();
  FakeQuantiser(const FakeQuantiser&) = delete;
  FakeQuantiser& operator=(const FakeQuantiser&) = delete;

  // The product of a weight, (N, K) or (E, N, K), of the model. The tensor is held: its memory must stay the
  // parameter's. The object must outlive the products' use.
  std::shared_ptr<const Product> add(const std::string& name, const at::Tensor& weight);

  // Begins as `evaluating`.
  Mode mode() const;
  // Weights may have changed since the last call.
  void set_mode(Mode mode);

  // `compensation`: what is left of it, from 1 to 0 (hard rounding): the share of the elements that get
  // noise, or the error that is carried, times this.
  void begin_step(int64_t step, double compensation);
  void begin_micro(int64_t micro);
  // Takes over what the step has seen, unless `clip_scale` (fp32 scalar) or what was seen is not finite.
  void end_step(const at::Tensor& clip_scale);

  // Static ranges from single passes without training: passes in mode `observing`, each followed by this. The
  // range is the largest that a pass has seen (minmax) or the mean over the passes.
  void observed_pass();
  // Whether every static range is known.
  bool ranges_are_known() const;
  // Names of products whose range is not finite or was never seen though a pass ran.
  std::vector<std::string> products_without_range() const;

  // What a checkpoint must hold: running ranges "range.<product>", carried errors "error.<weight>".
  std::vector<QuantState> state() const;
  // Learned steps, natural logarithms of them (as in Jain et al. 2020, "TQT"): "step.<product>". NaN until
  // training begins; leaves that require grad.
  std::vector<QuantState> steps() const;
  // The tensors of state() and steps() have been filled from a checkpoint.
  void restored();

  struct Context;

 private:
  class Site;
  class Weight;
  std::shared_ptr<Context> context_;
  std::vector<std::shared_ptr<Weight>> weights_;
};

}  // namespace moebius::quant
