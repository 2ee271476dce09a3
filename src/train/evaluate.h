// Loss of a model on a text.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "data/batches.h"
#include "nn/decoder.h"

namespace moebius::parallel {
class Mesh;
}

namespace moebius::train {

class Quantisation;

struct Evaluation {
  double loss = 0;           // mean cross-entropy, nats per token
  double perplexity = 0;     // exp(loss)
  double bits_per_byte = 0;  // of the text that the targets stand for; 0 when that is not known
  double max_violation = 0;  // expert load over the whole text: of the worst layer, max / mean - 1
  int64_t num_targets = 0;
  int64_t target_bytes = 0;
  std::optional<double> float_loss;  // of a model with quantised products: without quantisation
};

// The part of a document that lies in one window of the set.
struct PartLoss {
  double loss = 0;  // sum over its targets
  int64_t num_targets = 0;
};

// What an evaluation can tell beside its sums; null: not wanted.
struct EvaluationDetails {
  std::vector<PartLoss>* parts = nullptr;               // parts with targets, in order
  nn::RoutingObserver* routing = nullptr;               // told of every batch
  std::vector<at::Tensor>* likeliest_tokens = nullptr;  // int32, of each batch: for every target (T')
};

// The first `max_batches` batches (0: all) of the set. No capacity limit applies. With a mesh all ranks call
// it, each data rank takes every n-th batch, and all get the result of the whole; details are of its own
// part.
Evaluation evaluate(const nn::Decoder& decoder, data::ValidationSet& set, int64_t max_batches = 0,
                    const parallel::Mesh* mesh = nullptr, const EvaluationDetails& details = {});

// The same through a cache of this format, as generation passes tokens: the keys and values that a token
// sees, its own too, are those that the cache holds. Document by document, so slower. No statistics of
// routing.
Evaluation evaluate_cached(const nn::Decoder& decoder, data::ValidationSet& set, nn::KvFormat format,
                           int64_t max_batches = 0, const EvaluationDetails& details = {});

// The same with quantised products, and float_loss by a second pass without them; `quantisation` null:
// evaluate().
Evaluation evaluate_both(const nn::Decoder& decoder, Quantisation* quantisation, data::ValidationSet& set,
                         int64_t max_batches = 0, const parallel::Mesh* mesh = nullptr);

}  // namespace moebius::train
