// Everything that `moebius train` needs: data, model, optimizer, schedule, checkpoints.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/energy_config.h"
#include "config/field.h"
#include "config/model_config.h"
#include "config/parallel_config.h"
#include "config/precision_config.h"
#include "config/quant_config.h"

namespace moebius::config {

struct DecodeConfig {
  std::string device = "cpu";
};

template <class V>
void describe(V& v, DecodeConfig& c) {
  v.field(
      "device", c.device, one_of({"cpu", "opencl"}), "",
      "What takes the text out of JSON lines: the CPU, or a kernel on the first OpenCL device (the FPGA's "
      "place; on a CPU through PoCL, slower than \"cpu\"). Both give the same.");
}

struct DataConfig {
  std::vector<std::string> files;
  std::vector<double> weights;
  std::string tokenizer = "bytes";
  std::string cache_dir;
  double validation_fraction = 0.1;
  std::string validation_file;
  std::string batching = "window";
  int64_t window = 1000;
  int64_t max_delay = 32;
  bool split_documents = true;
  bool synthetic = false;
  int64_t prefetch = 2;
  DecodeConfig decode;
};

template <class V>
void describe(V& v, DataConfig& c) {
  v.field("files", c.files, any(), "", "Text files (UTF-8) or built corpora (.idx), each one source.");
  v.field("weights", c.weights, at_least(0), "", "Share of each source; empty: by its number of tokens.");
  v.field("tokenizer", c.tokenizer, any(), "",
          "'bytes', or the path of a SentencePiece .model or a Hugging Face tokenizer.json.");
  v.field("cache_dir", c.cache_dir, any(), "",
          "Where built corpora are kept; empty: a folder beside the run.");
  v.field("validation_fraction", c.validation_fraction, range(0, 0.9), "",
          "Share at the end of each source that is kept for validation.");
  v.field("validation_file", c.validation_file, any(), "",
          "Text for validation instead of a share of the sources.");
  v.field("batching", c.batching, any(), "",
          "How documents become batches (docs/batching.md): 'window' cuts sequences from all text joined; "
          "'pad', 'three-buckets', 'buckets:N' and 'edges:A,B,...' pad documents; 'pack' and 'balanced' put "
          "whole documents side by side, by tokens or by cost.");
  v.field("window", c.window, range(1, 1 << 24), "documents",
          "Looked at ahead by data.batching; more fit better and reorder more.");
  v.field("max_delay", c.max_delay, range(0, 1 << 20), "steps",
          "How long 'balanced' may hold back a long document.");
  v.field("split_documents", c.split_documents, any(), "",
          "Cut documents that are longer than train.sequence; false: refuse them. 'window' always cuts.");
  v.field("synthetic", c.synthetic, any(), "", "Random tokens instead of text, for benchmarks.");
  v.field("prefetch", c.prefetch, range(0, 1024), "batches",
          "Read ahead by the loader's thread; 0: no thread.");
  v.section("decode", c.decode, "How files that are not corpora yet are read.");
}

struct OptimizerConfig {
  std::string name = "adamw";
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;
  double grad_clip = 1.0;
  double embedding_lr_scale = 1.0;
  bool master_weights = true;
  std::string state_dtype = "fp32";
};

template <class V>
void describe(V& v, OptimizerConfig& c) {
  v.field("name", c.name, one_of({"adamw"}), "", "The update rule.");
  v.field("lr", c.lr, range(0, 100), "", "Peak learning rate.");
  v.field("beta1", c.beta1, range(0, 1), "", "Decay of the first moment.");
  v.field("beta2", c.beta2, range(0, 1), "", "Decay of the second moment.");
  v.field("eps", c.eps, range(0, 1), "", "Added to the root of the second moment.");
  v.field("weight_decay", c.weight_decay, range(0, 10), "", "Decoupled decay; none on norms and biases.");
  v.field("grad_clip", c.grad_clip, range(0, 1e9), "", "Largest global gradient norm; 0: no clipping.");
  v.field("embedding_lr_scale", c.embedding_lr_scale, range(0, 1000), "", "Factor on lr for the embedding.");
  v.field("master_weights", c.master_weights, any(), "", "Keep an fp32 copy of bf16 weights.");
  v.field("state_dtype", c.state_dtype, one_of({"fp32", "bf16", "int8"}), "",
          "Type of the moments; int8: codes of eight bits with a scale for each 256 of them, for parameters "
          "of 4,096 elements "
          "and more.");
}

struct ScheduleConfig {
  std::string kind = "cosine";
  int64_t warmup_steps = 0;
  double decay_fraction = 0.2;
  double final_lr_ratio = 0.0;
};

template <class V>
void describe(V& v, ScheduleConfig& c) {
  v.field("kind", c.kind, one_of({"constant", "linear", "cosine", "wsd"}), "",
          "Shape of the learning rate after warm-up; wsd holds, then falls linearly at the end.");
  v.field("warmup_steps", c.warmup_steps, at_least(0), "steps", "Linear rise from 0.");
  v.field("decay_fraction", c.decay_fraction, range(0, 1), "", "Share of the steps that wsd spends falling.");
  v.field("final_lr_ratio", c.final_lr_ratio, range(0, 1), "",
          "Learning rate at the end, as a share of the peak.");
}

struct CheckpointConfig {
  int64_t every = 0;
  bool at_end = true;
  int64_t keep = 2;
  bool background = true;
};

template <class V>
void describe(V& v, CheckpointConfig& c) {
  v.field("every", c.every, at_least(0), "steps", "Interval of checkpoints; 0: only at the end.");
  v.field("at_end", c.at_end, any(), "", "Save when the run ends or is interrupted; false: for benchmarks.");
  v.field("keep", c.keep, at_least(1), "", "How many of the newest checkpoints stay on disk.");
  v.field("background", c.background, any(), "", "Write while training goes on.");
}

struct TrainSection {
  int64_t steps = 1000;
  int64_t seed = 1;
  std::string initial_weights;
  std::string precision = "fp32";
  int64_t sequence = 256;
  int64_t batch = 8;
  int64_t micro_batch = 0;
  std::string recompute = "auto";
  int64_t recompute_layers = 0;
  bool deterministic = false;
  bool cuda_graph = false;
  std::string product_table;
  int64_t max_skipped = 10;
  int64_t eval_every = 0;
  int64_t eval_batches = 0;
  int64_t sample_every = 0;
  int64_t sample_tokens = 200;
  std::string sample_prompt = "\n";
  double sample_temperature = 0.8;
  int64_t log_every = 10;
  int64_t forecast_horizon = 0;
  int64_t trace_first = 3;
  int64_t trace_steps = 3;
};

template <class V>
void describe(V& v, TrainSection& c) {
  v.field("steps", c.steps, at_least(1), "steps", "Optimizer steps.");
  v.field("seed", c.seed, at_least(0), "", "Seed of weights, data order and samples.");
  v.field("initial_weights", c.initial_weights, any(), "",
          "Run folder or checkpoint whose weights the run begins with; empty: drawn from the seed.");
  v.field("precision", c.precision, one_of({"fp32", "bf16"}), "", "Type of weights and activations.");
  v.field("sequence", c.sequence, range(2, 1 << 24), "tokens", "Tokens per sequence.");
  v.field("batch", c.batch, at_least(1), "sequences", "Sequences per optimizer step.");
  v.field("micro_batch", c.micro_batch, at_least(0), "sequences",
          "Sequences per pass; must divide batch. 0: all.");
  v.field("recompute", c.recompute, one_of({"auto", "none", "selective", "full"}), "",
          "Activations computed again in the backward pass: none; selective: norms, normalised heads, "
          "activations and "
          "up projections; full: whole blocks. auto: the least that fits memory.budget_gib.");
  v.field("recompute_layers", c.recompute_layers, at_least(0), "",
          "Blocks, from the first, that train.recompute applies to; those after them keep one step more "
          "(selective "
          "after full, none after selective). 0: all blocks.");
  v.field("deterministic", c.deterministic, any(), "", "Only operators whose result is the same every time.");
  v.field("cuda_graph", c.cuda_graph, any(), "",
          "On a GPU: record the whole step once for each shape of batch and run the recording after that. "
          "Batches of "
          "documents of different lengths are run as without.");
  v.field(
      "product_table", c.product_table, any(), "",
      "File of measured ways to compute the experts' products on this GPU, as moebius bench moe_layer --tune "
      "writes it; empty: moebius/products.json in the user's cache, where there is one.");
  v.field("max_skipped", c.max_skipped, at_least(1), "steps",
          "Stop after this many non-finite steps in a row.");
  v.field("eval_every", c.eval_every, at_least(0), "steps", "Interval of validation; 0: only at the end.");
  v.field("eval_batches", c.eval_batches, at_least(0), "", "Batches per validation; 0: the whole split.");
  v.field("sample_every", c.sample_every, at_least(0), "steps",
          "Interval of text samples; 0: only at the end.");
  v.field("sample_tokens", c.sample_tokens, at_least(0), "tokens", "Length of a sample; 0: none.");
  v.field("sample_prompt", c.sample_prompt, any(), "", "Text that a sample continues.");
  v.field("sample_temperature", c.sample_temperature, range(0, 100), "",
          "Divides the logits before a sample's token is drawn; 0: always the likeliest.");
  v.field("log_every", c.log_every, at_least(1), "steps", "Interval of plain progress lines.");
  v.field(
      "forecast_horizon", c.forecast_horizon, range(0, 100000), "steps",
      "Forecast each expert's load this far ahead and report how wrong that was when the time has come; 0: "
      "do not. Keeps 56 bytes per expert, layer and step ahead.");
  v.field("trace_first", c.trace_first, at_least(1), "", "First step that --trace records.");
  v.field("trace_steps", c.trace_steps, at_least(1), "steps", "How many steps --trace records.");
}

struct MemoryConfig {
  double budget_gib = 0;
};

template <class V>
void describe(V& v, MemoryConfig& c) {
  v.field("budget_gib", c.budget_gib, range(0, 1e6), "GiB",
          "What a step may take of the memory its model lies in, for train.recompute = 'auto'; 0: nine "
          "tenths of what is "
          "free when the run starts.");
}

struct RunConfig {
  ModelConfig model;
  DataConfig data;
  TrainSection train;
  OptimizerConfig optimizer;
  ScheduleConfig schedule;
  CheckpointConfig checkpoint;
  MemoryConfig memory;
  EnergyConfig energy;
  ParallelConfig parallel;
  QuantConfig quant;
  PrecisionConfig precision;
};

template <class V>
void describe(V& v, RunConfig& c) {
  v.section("model", c.model, "Shape of the decoder.");
  v.section("data", c.data, "Text, tokenizer and validation split.");
  v.section("train", c.train, "Length, batch, precision and reporting.");
  v.section("optimizer", c.optimizer, "Update rule.");
  v.section("schedule", c.schedule, "Learning rate over time.");
  v.section("checkpoint", c.checkpoint, "What is saved, and when.");
  v.section("memory", c.memory, "What a step may take.");
  v.section("energy", c.energy, "Counting of joules and grams of CO2, and the clock governor.");
  v.section("parallel", c.parallel, "How a run is spread over several processes.");
  v.section("quant", c.quant, "Quantisation-aware training.");
  v.section("precision", c.precision, "Parts of the model with arithmetic of their own.");
}

}  // namespace moebius::config
