#include "cli/layer_shapes.h"

#include "base/concat.h"
#include "base/distance.h"
#include "base/error.h"

namespace moebius::cli {

const std::vector<LayerShape>& layer_shapes() {
  static const std::vector<LayerShape> shapes = [] {
    const LayerShape qwen{.name = "qwen3-30b",
                          .tokens = 32768,
                          .dim = 2048,
                          .expert_dim = 768,
                          .experts = 128,
                          .top_k = 8,
                          .heads = 32,
                          .kv_heads = 4,
                          .step_layers = 4,
                          .qk_norm = "head",
                          .rope_theta = 1e6,
                          .norm_eps = 1e-6};
    LayerShape qwen_8k = qwen, qwen_1k = qwen;
    qwen_8k.name = "qwen3-30b-8k";
    qwen_8k.tokens = 8192;
    qwen_1k.name = "qwen3-30b-1k";
    qwen_1k.tokens = qwen_1k.sequence = 1024;
    qwen_8k.step_layers = qwen_1k.step_layers = 0;
    return std::vector<LayerShape>{
        {.name = "mixtral",
         .tokens = 8192,
         .dim = 4096,
         .expert_dim = 14336,
         .experts = 8,
         .top_k = 2,
         .heads = 32,
         .kv_heads = 8,
         .step_layers = 2,
         .rope_theta = 1e6},
        qwen,
        qwen_8k,
        qwen_1k,
        {.name = "olmoe",
         .tokens = 16384,
         .dim = 2048,
         .expert_dim = 1024,
         .experts = 64,
         .top_k = 8,
         .heads = 16,
         .kv_heads = 16,
         .step_layers = 6,
         .qk_norm = "full",
         .normalize_weights = false},
        {.name = "dsv2-lite", .tokens = 16384, .dim = 2048, .expert_dim = 1408, .experts = 64, .top_k = 6},
        {.name = "sonic-1536", .tokens = 24576, .dim = 1536, .expert_dim = 256, .experts = 128, .top_k = 8},
        {.name = "sonic-4096", .tokens = 32768, .dim = 4096, .expert_dim = 1024, .experts = 128, .top_k = 8},
        {.name = "tiny",
         .tokens = 256,
         .dim = 64,
         .expert_dim = 48,
         .experts = 8,
         .top_k = 2,
         .heads = 4,
         .kv_heads = 2,
         .head_dim = 16,
         .sequence = 64,
         .vocab = 256,
         .step_layers = 2,
         .qk_norm = "head"}};
  }();
  return shapes;
}

const LayerShape& find_layer_shape(const std::string& name) {
  std::vector<std::string> names;
  for (const LayerShape& shape : layer_shapes()) {
    if (shape.name == name) return shape;
    names.push_back(shape.name);
  }
  std::string all;
  for (const std::string& each : names) all += concat(all.empty() ? "" : ", ", each);
  const std::optional<std::string> nearest = nearest_name(name, names);
  throw_user_error("--shape ", name, " is not known",
                   nearest ? concat("; did you mean ", *nearest, "?") : ";", " there are ", all);
}

config::RunConfig step_config(const LayerShape& shape) {
  if (shape.step_layers == 0) {
    std::string all;
    for (const LayerShape& each : layer_shapes())
      if (each.step_layers > 0) all += concat(all.empty() ? "" : ", ", each.name);
    throw_user_error("--shape ", shape.name, " has no training step; choose ", all);
  }
  config::RunConfig run;
  run.model.layers = shape.step_layers;
  run.model.dim = shape.dim;
  run.model.heads = shape.heads;
  run.model.kv_heads = shape.kv_heads;
  run.model.head_dim = shape.head_dim;
  run.model.vocab = shape.vocab;
  run.model.qk_norm = shape.qk_norm;
  run.model.rope_theta = shape.rope_theta;
  run.model.norm_eps = shape.norm_eps;
  run.model.moe.experts = shape.experts;
  run.model.moe.top_k = shape.top_k;
  run.model.moe.expert_dim = shape.expert_dim;
  run.model.moe.normalize_weights = shape.normalize_weights;
  run.model.moe.balance.aux_loss = 0;
  run.data.synthetic = true;
  run.train.steps = 20;
  run.train.precision = "bf16";
  run.train.sequence = shape.sequence;
  run.train.batch = 4;
  run.train.eval_batches = 1;
  run.train.sample_tokens = 0;
  run.train.log_every = 1;
  run.optimizer.lr = 1e-4;
  run.optimizer.master_weights = false;
  run.optimizer.state_dtype = "bf16";
  run.schedule.kind = "constant";
  run.checkpoint.at_end = false;
  return run;
}

}  // namespace moebius::cli
