// precision.experts = "int8": routed experts whose products are computed with integers (ops/int8_training.h).
#pragma once

#include <memory>
#include <vector>

#include "config/train_config.h"
#include "nn/decoder.h"
#include "quant/int8_training_product.h"

namespace moebius::train {

class Int8Experts {
 public:
  // Gives the decoder's experts their products; null with precision.experts = "model". The parameters must
  // have their memory. Where the device has no integer products the experts stay floats, which is said once.
  static std::unique_ptr<Int8Experts> attach(const config::RunConfig& config, nn::Decoder& decoder);

  // Codes are made again at the next use. Called around each step, whatever changes the weights.
  void weights_changed();

 private:
  std::vector<std::shared_ptr<quant::Int8TrainingProduct>> products_;
};

// UserError where the section [precision] cannot be served: with other sections, or by `num_processes`.
void check_precision(const config::RunConfig& config, int64_t num_processes);

}  // namespace moebius::train
