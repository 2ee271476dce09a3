#include "config/validate.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "base/concat.h"
#include "base/error.h"
#include "config/batching.h"

namespace moebius::config {
namespace {

class Rules {
 public:
  template <class... Parts>
  void require(bool holds, const Parts&... parts) {
    if (!holds) text_ += (text_.empty() ? "" : "\n") + concat(parts...);
  }
  void finish() const {
    if (!text_.empty()) throw UserError(text_);
  }

 private:
  std::string text_;
};

// Names of layers: each below `layers`, none twice.
void check_layer_list(const char* path, const std::vector<int64_t>& list, int64_t layers, Rules& rules) {
  for (const int64_t layer : list) {
    rules.require(layer < layers, path, " names layer ", layer, ", but model.layers is ", layers,
                  "; layers count from 0 to ", layers - 1);
  }
  std::vector<int64_t> sorted = list;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  rules.require(twice == sorted.end(), path, " names layer ", twice == sorted.end() ? 0 : *twice,
                " twice; name each layer once");
}

void require_even(bool applies, const char* path, int64_t value, Rules& rules) {
  rules.require(!applies || value % 2 == 0, path, " is ", value,
                "; rotary positions need an even number, use ", value + 1, " or ",
                std::max<int64_t>(value - 1, 2));
}

void check_heads(const ModelConfig& m, Rules& rules) {
  rules.require(m.kv_heads <= m.heads && m.heads % m.kv_heads == 0, "model.heads is ", m.heads,
                ", not a multiple of model.kv_heads (", m.kv_heads, "); set model.kv_heads to a divisor of ",
                m.heads);
  const int64_t head_dim = m.head_dim > 0 ? m.head_dim : m.dim / m.heads;
  if (m.head_dim == 0) {
    rules.require(m.dim % m.heads == 0, "model.dim is ", m.dim, ", not a multiple of model.heads (", m.heads,
                  "); change one of them, or set model.head_dim");
    rules.require(m.dim % m.heads != 0 || head_dim % 2 == 0,
                  "model.head_dim is 0, which makes it dim / heads = ", head_dim,
                  "; rotary positions need an even number, set model.head_dim or change model.heads");
  } else {
    require_even(true, "model.head_dim", m.head_dim, rules);
  }
  require_even(m.rotary_dim > 0, "model.rotary_dim", m.rotary_dim, rules);
  rules.require(m.rotary_dim <= head_dim, "model.rotary_dim is ", m.rotary_dim, ", but a head has ", head_dim,
                " channels; lower it, or set it to 0 to rotate all");
  check_layer_list("model.sliding_layers", m.sliding_layers, m.layers, rules);
  rules.require(m.sliding_layers.empty() || m.sliding_window > 0, "model.sliding_layers names ",
                m.sliding_layers.size(),
                " layer(s), but model.sliding_window is 0; set the window, or remove the list");
}

// What latent attention does not have.
void check_latent(const ModelConfig& m, Rules& rules) {
  require_even(true, "model.mla.rope_dim", m.mla.rope_dim, rules);
  rules.require(m.qk_norm == "none", "model.qk_norm is '", m.qk_norm,
                "', but model.attention = 'mla' has norms of its own, on the latents; set it to 'none'");
  rules.require(m.rotary_dim == 0, "model.rotary_dim is ", m.rotary_dim,
                ", but model.attention = 'mla' rotates model.mla.rope_dim channels; set it to 0");
  rules.require(m.sliding_window == 0 && m.sliding_layers.empty(), "model.sliding_window is ",
                m.sliding_window,
                ", but model.attention = 'mla' has no window; set it to 0 and remove model.sliding_layers");
  rules.require(!m.attention_sinks,
                "model.attention_sinks is true, but model.attention = 'mla' has no sinks; set it to false");
}

void check_rope(const RopeConfig& rope, Rules& rules) {
  if (rope.scaling == "none") return;
  rules.require(rope.factor >= 1, "model.rope.factor is ", rope.factor, ", but model.rope.scaling = '",
                rope.scaling, "' stretches the context; use 1 or more, or scaling = 'none'");
  rules.require(rope.scaling == "linear" || rope.original_context > 0,
                "model.rope.original_context is 0, but model.rope.scaling = '", rope.scaling,
                "' needs it; set it to the context before stretching, for example 4096");
  if (rope.scaling == "yarn") {
    rules.require(rope.beta_slow > 0 && rope.beta_fast >= rope.beta_slow, "model.rope.beta_fast is ",
                  rope.beta_fast, " and model.rope.beta_slow is ", rope.beta_slow,
                  "; they must be above 0, beta_fast not below beta_slow (32 and 1 are usual)");
  }
  if (rope.scaling == "llama3") {
    rules.require(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor,
                  "model.rope.low_freq_factor is ", rope.low_freq_factor,
                  " and model.rope.high_freq_factor is ", rope.high_freq_factor,
                  "; they must be above 0, the second above the first (1 and 4 are usual)");
  }
}

void check_attention(const ModelConfig& m, Rules& rules) {
  if (m.is_latent()) {
    check_latent(m, rules);
  } else {
    check_heads(m, rules);
  }
  check_rope(m.rope, rules);
}

void check_groups(const MoeConfig& moe, Rules& rules) {
  if (moe.experts % moe.groups != 0) {
    rules.require(false, "model.moe.experts is ", moe.experts, ", not a multiple of model.moe.groups (",
                  moe.groups, "); set model.moe.groups to a divisor of ", moe.experts);
    return;
  }
  const int64_t in_group = moe.experts / moe.groups;
  rules.require(moe.top_groups <= moe.groups, "model.moe.top_groups is ", moe.top_groups,
                ", but there are only ", moe.groups, " groups (model.moe.groups); lower it");
  rules.require(moe.top_groups > moe.groups || moe.top_k <= moe.top_groups * in_group, "model.moe.top_k is ",
                moe.top_k, ", but ", moe.top_groups, " group(s) (model.moe.top_groups) have only ",
                moe.top_groups * in_group, " experts; lower model.moe.top_k or raise model.moe.top_groups");
  rules.require(moe.groups == 1 || moe.group_score == "max" || in_group >= 2,
                "model.moe.group_score is 'top2_sum', but a group has one expert; lower model.moe.groups, or "
                "use 'max'");
}

void check_moe(const ModelConfig& m, Rules& rules) {
  const MoeConfig& moe = m.moe;
  check_layer_list("model.moe.dense_layers", moe.dense_layers, m.layers, rules);
  if (moe.experts == 0) return;
  rules.require(moe.top_k <= moe.experts, "model.moe.top_k is ", moe.top_k, ", but there are only ",
                moe.experts,
                " experts (model.moe.experts); lower model.moe.top_k or raise model.moe.experts");
  if (moe.top_k <= moe.experts) check_groups(moe, rules);
  rules.require(
      moe.score == "softmax" || moe.softmax_order == "before_topk",
      "model.moe.softmax_order is 'after_topk', but model.moe.score is '", moe.score,
      "', which has no softmax; remove model.moe.softmax_order or set model.moe.score to 'softmax'");
  rules.require(moe.weight_scale > 0,
                "model.moe.weight_scale is 0, which cuts the experts off; use a value above 0");
  rules.require(moe.capacity_factor == 0 || moe.capacity_factor * static_cast<double>(moe.top_k) >= 0.01,
                "model.moe.capacity_factor is ", moe.capacity_factor,
                ", which drops nearly every token; use 1 or more, or 0 to never drop");
  rules.require(moe.shared_experts > 0 || !moe.shared_gate,
                "model.moe.shared_gate is true, but model.moe.shared_experts is 0; set it to 1, or "
                "shared_gate to false");
  rules.require(moe.shared_experts > 0 || moe.shared_dim == 0, "model.moe.shared_dim is ", moe.shared_dim,
                ", but model.moe.shared_experts is 0; set it to 1, or shared_dim to 0");
  rules.require(moe.activation == "swiglu" || moe.activation_limit > 0,
                "model.moe.activation_limit is 0, which cuts the experts off; use a value above 0");
}

void check_batching(const RunConfig& c, Rules& rules) {
  const std::string& text = c.data.batching;
  Batching batching;
  try {
    batching = parse_batching(text, "data.batching");
  } catch (const UserError& error) {
    rules.require(false, error.what());
    return;
  }
  rules.require(batching.kind == BatchingKind::window || !c.data.synthetic, "data.batching is '", text,
                "', but data.synthetic has no documents; use 'window', or text in data.files");
  if (batching.kind == BatchingKind::edges) {
    rules.require(batching.edges.back() < c.train.sequence, "data.batching is '", text, "', but edge ",
                  batching.edges.back(), " is not below train.sequence (", c.train.sequence,
                  "), the longest that a row can be; leave it out");
  }
}

void check_data(const RunConfig& c, Rules& rules) {
  const DataConfig& data = c.data;
  // A model that came with its tokenizer has no text yet: who trains it names one (data/prepare.h asks
  // again).
  rules.require(
      data.synthetic || !data.files.empty() || data.tokenizer != "bytes",
      "data.files is empty; name at least one text file, or set data.synthetic = true for random tokens");
  rules.require(!data.synthetic || data.files.empty(), "data.synthetic is true, but data.files names ",
                data.files.size(), " file(s) that would not be read; remove one of the two");
  rules.require(
      !data.synthetic || c.model.vocab > 0,
      "model.vocab is 0, but data.synthetic has no tokenizer to ask; set model.vocab, for example to 32000");
  for (size_t i = 0; i < data.files.size(); ++i) {
    rules.require(!data.files[i].empty(), "data.files[", i, "] is empty; name a file or remove the entry");
  }
  rules.require(data.weights.empty() || data.weights.size() == data.files.size(), "data.weights has ",
                data.weights.size(), " value(s) for ", data.files.size(),
                " file(s) in data.files; give one weight per file, or none");
  rules.require(data.weights.empty() || std::accumulate(data.weights.begin(), data.weights.end(), 0.0) > 0,
                "data.weights are all 0, so no source would be read; raise one of them");
  rules.require(
      !data.tokenizer.empty(),
      "data.tokenizer is empty; use 'bytes' or the path of a SentencePiece model or a tokenizer.json");
  rules.require(data.tokenizer != "bytes" || c.model.vocab == 0 || c.model.vocab >= 256 || data.synthetic,
                "model.vocab is ", c.model.vocab,
                ", fewer than the 256 bytes of data.tokenizer = 'bytes'; set model.vocab = 0 to let the "
                "tokenizer decide");
  rules.require(data.validation_file.empty() || !data.synthetic, "data.validation_file is '",
                data.validation_file, "', but data.synthetic is true; remove one of the two");
}

void check_training(const RunConfig& c, Rules& rules) {
  const TrainSection& train = c.train;
  rules.require(
      train.micro_batch <= train.batch && (train.micro_batch == 0 || train.batch % train.micro_batch == 0),
      "train.batch is ", train.batch, ", not a multiple of train.micro_batch (", train.micro_batch,
      "); set train.micro_batch to a divisor of ", train.batch, ", or to 0 for all at once");
  rules.require(c.schedule.warmup_steps <= train.steps, "schedule.warmup_steps is ", c.schedule.warmup_steps,
                ", but train.steps is ", train.steps, "; the warm-up must fit in the run, lower it");
  const double decay_steps = c.schedule.decay_fraction * static_cast<double>(train.steps);
  rules.require(c.schedule.kind != "wsd" || static_cast<double>(c.schedule.warmup_steps) + decay_steps <=
                                                static_cast<double>(train.steps) + 1e-6,
                "schedule.decay_fraction is ", c.schedule.decay_fraction, " of ", train.steps,
                " steps, which overlaps the ", c.schedule.warmup_steps,
                " steps of warm-up; lower it or schedule.warmup_steps");
  const OptimizerConfig& optimizer = c.optimizer;
  rules.require(optimizer.beta1 < 1,
                "optimizer.beta1 is 1, so the first moment would never move; use 0.9, or less than 1");
  rules.require(optimizer.beta2 < 1,
                "optimizer.beta2 is 1, so the second moment would never move; use 0.95, or less than 1");
  rules.require(
      train.eval_every == 0 || c.data.synthetic || c.data.validation_fraction > 0 ||
          !c.data.validation_file.empty(),
      "train.eval_every is ", train.eval_every,
      ", but there is no validation text; raise data.validation_fraction or name data.validation_file");
}

void check_quant(const RunConfig& c, Rules& rules) {
  const QuantConfig& quant = c.quant;
  if (!quant.is_on()) return;
  rules.require(
      quant.activation_bits != 1,
      "quant.activation_bits is 1; symmetric codes need 2 or more, 0 leaves activations as they are");
  rules.require(!quant.classes.empty(),
                "quant.classes is empty, so nothing would be quantised; name some of 'attention', 'ffn' and "
                "'experts', or set quant.scheme = 'none'");
  for (const std::string& name : quant.classes)
    rules.require(name == "attention" || name == "ffn" || name == "experts", "quant.classes names '", name,
                  "'; it may name 'attention', 'ffn' and 'experts'");
  rules.require(quant.start_step <= c.train.steps, "quant.start_step is ", quant.start_step,
                ", but train.steps is ", c.train.steps, "; no step would be quantised, lower it");
  const bool is_noise = quant.compensation == "uniform" || quant.compensation == "gaussian";
  rules.require(!is_noise || quant.share > 0, "quant.share is 0, so quant.compensation = '",
                quant.compensation, "' would do nothing; raise it, or set quant.compensation = 'none'");
}

}  // namespace

void validate_model(const ModelConfig& model) {
  Rules rules;
  check_attention(model, rules);
  check_moe(model, rules);
  rules.finish();
}

void validate(const RunConfig& config) {
  Rules rules;
  check_attention(config.model, rules);
  check_moe(config.model, rules);
  check_data(config, rules);
  check_batching(config, rules);
  check_training(config, rules);
  check_quant(config, rules);
  rules.finish();
}

}  // namespace moebius::config
