// Quantised checkpoints as models. A quantised weight NAME is stored as its int8 codes, under its name, and
// the scales of its rows, as NAME.scale; the checkpoint's state has `quantisation` with the scheme.
#pragma once

#include <optional>
#include <string>

#include "ckpt/checkpoint.h"
#include "nn/decoder.h"
#include "quant/int8_product.h"

namespace moebius::train {

std::string scale_name(const std::string& weight);

// Weights that quantise_run makes int8: those of products, but for what absorbed attention takes apart for
// every token (kv_up of latent attention).
bool is_quantisable(const nn::ParamSpec& spec);

// The scheme that a checkpoint was quantised with; nullopt for one in floats. UserError for a scheme that
// this program does not know.
std::optional<quant::Scheme> scheme_of(const ckpt::Checkpoint& checkpoint);

// UserError "PATH is quantised (SCHEME) and WHAT; WAY_OUT" when it is.
void refuse_quantised(const ckpt::Checkpoint& checkpoint, const std::string& what,
                      const std::string& way_out);

std::string state_with_scheme(const std::string& state_json, quant::Scheme scheme);

// Fills an allocated model. Quantised weights get products (Param::product) and lose their float memory, so
// that they are held in int8 alone; on a device without integer products they become floats again, which is
// said once.
void load_quantised(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme, nn::Decoder& decoder);

}  // namespace moebius::train
