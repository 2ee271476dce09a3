// Quantised checkpoints as models. A quantised weight NAME is stored as its codes, under its name, and the
// scales of its rows or their groups, as NAME.scale; the checkpoint's state has `quantisation` with the
// scheme.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "nn/decoder.h"
#include "quant/int8_product.h"

namespace moebius::train {

std::string scale_name(const std::string& weight);

// Weights that quantise_run makes integers: those of products, but for what absorbed attention takes apart
// for every token (kv_up of latent attention).
bool is_quantisable(const nn::ParamSpec& spec);

// The scheme that a checkpoint was quantised with; nullopt for one in floats. UserError for a scheme that
// this program does not know.
std::optional<quant::Scheme> scheme_of(const ckpt::Checkpoint& checkpoint);

// UserError "PATH is quantised (SCHEME) and WHAT; WAY_OUT" when it is.
void refuse_quantised(const ckpt::Checkpoint& checkpoint, const std::string& what,
                      const std::string& way_out);

// `group`: values along an input that share a scale, of int4.
std::string state_with_scheme(const std::string& state_json, quant::Scheme scheme, int64_t group);

// A quantised weight in a checkpoint's memory maps.
struct MappedCodes {
  std::string name;
  at::Tensor codes, scales;
};
// All weights of the model: floats go to the decoder's parameters, as maps; of the quantised ones the memory
// is let go.
std::vector<MappedCodes> map_quantised(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme,
                                       nn::Decoder& decoder);
// Values along an input that share a scale; 0 for one scale per row. UserError for what the kernels do not
// know.
int64_t group_of(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme);

// Fills an allocated model. Quantised weights get products (Param::product) and lose their float memory, so
// that they are held as integers alone; on a device without such products they become floats again, which is
// said once.
void load_quantised(const ckpt::Checkpoint& checkpoint, quant::Scheme scheme, nn::Decoder& decoder);

}  // namespace moebius::train
