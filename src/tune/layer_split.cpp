#include "tune/layer_split.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace moebius::tune {
namespace {

int64_t attention_weights(const config::ModelConfig& model) {
  const int64_t dim = model.dim, heads = model.heads, out = heads * model.value_dim() * dim;
  if (!model.is_latent())
    return dim * ((heads + model.kv_heads) * model.query_dim() + model.kv_heads * model.value_dim()) + out;
  const config::MlaConfig& mla = model.mla;
  const int64_t query_width = heads * model.query_dim();
  const int64_t queries = mla.q_rank > 0 ? dim * mla.q_rank + mla.q_rank * query_width : dim * query_width;
  return queries + dim * (mla.kv_rank + mla.rope_dim) + mla.kv_rank * heads * (mla.nope_dim + mla.value_dim) +
         out;
}

double score_flops(const config::ModelConfig& model, int64_t layer, int64_t sequence) {
  const auto channels = static_cast<double>(model.heads * (model.query_dim() + model.value_dim()));
  return 2 * mean_keys(model, layer, sequence) * channels;
}

}  // namespace

int64_t active_weights_of_layer(const config::ModelConfig& model, int64_t layer) {
  const config::MoeConfig& moe = model.moe;
  const bool is_dense = moe.experts == 0 || std::find(moe.dense_layers.begin(), moe.dense_layers.end(),
                                                      layer) != moe.dense_layers.end();
  if (is_dense) return attention_weights(model) + 3 * model.dim * model.ffn_dim;
  return attention_weights(model) + model.dim * moe.experts +
         3 * model.dim * (moe.expert_dim * moe.top_k + moe.shared_width()) +
         (moe.shared_gate ? model.dim : 0);
}

int64_t active_weights_behind_layers(const config::ModelConfig& model) {
  const int64_t output = model.vocab * model.dim;
  if (model.mtp.depth == 0) return output;
  return 2 * output + 2 * model.dim * model.dim + active_weights_of_layer(model, model.layers);
}

double mean_keys(const config::ModelConfig& model, int64_t layer, int64_t sequence) {
  const double all = static_cast<double>(sequence), window = static_cast<double>(model.window_of(layer));
  return window == 0 || window >= all ? all / 2 : window - window * window / (2 * all);
}

std::vector<double> forward_flops(const config::ModelConfig& model, int64_t sequence,
                                  const std::vector<int64_t>& layers_of_piece) {
  std::vector<double> flops;
  int64_t layer = 0;
  for (const int64_t count : layers_of_piece) {
    double sum = 0;
    for (const int64_t end = layer + count; layer < end; ++layer)
      sum += 2.0 * static_cast<double>(active_weights_of_layer(model, layer)) +
             score_flops(model, layer, sequence);
    flops.push_back(sum);
  }
  MOEBIUS_CHECK_EQ(layer, model.layers, "layers of the pieces");
  flops.back() += 2.0 * static_cast<double>(active_weights_behind_layers(model));
  if (model.mtp.depth > 0) flops.back() += score_flops(model, model.layers, sequence);
  return flops;
}

std::vector<int64_t> split_layers(const config::ModelConfig& model, int64_t sequence, int64_t num_pieces) {
  MOEBIUS_CHECK(num_pieces >= 1 && num_pieces <= model.layers, num_pieces, " pieces of ", model.layers,
                " layers");
  const auto layers = static_cast<size_t>(model.layers), pieces = static_cast<size_t>(num_pieces);
  // Cost of the layers before each, those of the last layer with what is behind it.
  std::vector<double> before{0};
  for (const double each :
       forward_flops(model, sequence, std::vector<int64_t>(static_cast<size_t>(model.layers), 1)))
    before.push_back(before.back() + each);
  // best[p][l]: of the first l layers in p pieces, the most that one costs and the sum of the squares.
  struct Best {
    double most = std::numeric_limits<double>::infinity(), squares = 0;
    size_t begin = 0;  // of the last piece
  };
  std::vector<std::vector<Best>> best(pieces + 1, std::vector<Best>(layers + 1));
  best[0][0].most = 0;
  for (size_t p = 1; p <= pieces; ++p) {
    for (size_t end = p; end <= layers; ++end) {
      for (size_t begin = p - 1; begin < end; ++begin) {
        const double cost = before[end] - before[begin];
        const Best& rest = best[p - 1][begin];
        const Best candidate{std::max(rest.most, cost), rest.squares + cost * cost, begin};
        Best& kept = best[p][end];
        if (candidate.most < kept.most || (candidate.most == kept.most && candidate.squares < kept.squares))
          kept = candidate;
      }
    }
  }
  std::vector<int64_t> counts(pieces);
  for (size_t p = pieces, end = layers; p > 0; --p) {
    counts[p - 1] = static_cast<int64_t>(end - best[p][end].begin);
    end = best[p][end].begin;
  }
  return counts;
}

}  // namespace moebius::tune
