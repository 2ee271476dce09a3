// Arithmetic of each layer, and layers dealt out to the pieces of a pipeline by it.
#pragma once

#include <cstdint>
#include <vector>

#include "config/model_config.h"

namespace moebius::tune {

// Weights of products that a token of layer `layer` meets (of experts those chosen), without those of scores
// and values; `layer` = layers is the block of multi-token prediction.
int64_t active_weights_of_layer(const config::ModelConfig& model, int64_t layer);
// Of what comes behind the layers: output layer, and multi-token prediction with its block.
int64_t active_weights_behind_layers(const config::ModelConfig& model);
// Tokens that a query sees, mean over a sequence; sequence / 2 counts the diagonal by half, as usual.
double mean_keys(const config::ModelConfig& model, int64_t layer, int64_t sequence);

// FLOPs per token of a forward pass through each of consecutive pieces of so many layers: the embedding,
// which costs none, is in front of the first, and what comes behind the layers is in the last.
std::vector<double> forward_flops(const config::ModelConfig& model, int64_t sequence,
                                  const std::vector<int64_t>& layers_of_piece);

// How many layers each piece gets, at least one, so that the piece with most to do has as little as possible,
// and the others are as even as that leaves them. There are at least as many layers as pieces (CHECK).
std::vector<int64_t> split_layers(const config::ModelConfig& model, int64_t sequence, int64_t num_pieces);

}  // namespace moebius::tune
