// The model of a rank: layers that know their axes, and a table of parameters that holds this rank's slices.
#pragma once

#include <memory>

#include "config/train_config.h"
#include "nn/decoder.h"

namespace moebius::parallel {

class Mesh;

// Only declares, as moe::make_decoder does. The mesh outlives the decoder and every graph made with it.
// config.model.vocab is set; its sizes fit the layout (make_layout has said so to the user).
std::unique_ptr<nn::Decoder> make_spread_decoder(const config::RunConfig& config, const Mesh& mesh);

}  // namespace moebius::parallel
