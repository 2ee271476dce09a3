// Predicted time of a training step of a mixture-of-experts model on a cluster, from the rates of kernels on
// one GPU and the speed of links. Nothing is fitted to a cluster's results; docs/scaling.md compares
// predictions with published measurements.
//
// Products take the longer of their arithmetic at a measured rate and their bytes at the memory's;
// collectives take what a ring must carry over the slower of the links that the group of ranks spans (ranks
// of a node share its links to the network); a pipeline idles (pp - 1) / virtual_stages micro-batches
// (Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM").
// Expert load is taken as even.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "config/train_config.h"

namespace moebius::tune {

struct Gpu {
  std::string name;
  double peak_flops = 0;  // dense bf16, of the data sheet: the base of MFU
  double memory_bytes = 0;
  double memory_bytes_per_s = 0;  // measured, or 0.88 of the data sheet's
  // Measured rates of our kernels, FLOP/s: dense products, experts' products with what is fused into them,
  // causal attention forward and backward.
  double dense_flops = 0, expert_flops = 0, attention_forward_flops = 0, attention_backward_flops = 0;
};

struct Cluster {
  Gpu gpu;
  int64_t num_gpus = 1;
  int64_t gpus_per_node = 8;
  // One direction, per GPU, as reached.
  double node_bytes_per_s = 0, network_bytes_per_s = 0;
};

// "h100x128", "h200x8": NVLink 4 (450 GB/s) in nodes of eight and 400 Gb/s InfiniBand per GPU, both at 0.8 of
// that. UserError for what is not known.
Cluster parse_cluster(const std::string& text);

// How ranks are laid out, tensor ranks next to each other and stages farthest apart; data = the rest.
struct CostLayout {
  int64_t tp = 1, pp = 1, ep = 1, expert_tp = 1;
  int64_t virtual_stages = 1;  // pieces of the model per pipeline stage
  int64_t zero_stage = 1;      // 3: parameters are gathered for each micro-batch, in forward and backward
  int64_t micro_batch = 1;     // sequences
  bool hides = false;          // exchanges of weights and gradients run behind arithmetic as far as it lasts

  std::string text() const;
};

// The layout of [parallel] and train.micro_batch, where 0 takes one sequence.
CostLayout layout_of(const config::RunConfig& config);

// Why a model and its batch cannot be laid out so; empty when they can.
std::string misfit(const config::RunConfig& config, const Cluster& cluster, const CostLayout& layout);

// Seconds of a step, on the rank with most to do, and bytes that it holds.
struct StepCost {
  double dense = 0, attention = 0, experts = 0, passes = 0;  // arithmetic; passes: norms, rotations, sums
  double tensor = 0, dispatch = 0, expert_tensor = 0;        // exchanges of activations
  double weights = 0, gradients = 0, stages = 0;             // of parameters, of gradients, between stages
  double bubble = 0, optimizer = 0;
  double seconds = 0;  // their sum
  double mfu = 0;      // model FLOPs (recomputation not counted) over time and the data sheet's peak
  double bytes = 0;    // weights, gradients, optimizer state and kept activations
};

// The model must be of plain grouped-head attention with experts in every layer (UserError otherwise);
// misfit() is empty.
StepCost predict_step(const config::RunConfig& config, const Cluster& cluster, const CostLayout& layout);

struct Choice {
  CostLayout layout;
  StepCost cost;
};

// Layouts of powers of two that fit the memory, fastest first.
std::vector<Choice> best_layouts(const config::RunConfig& config, const Cluster& cluster, size_t count,
                                 int64_t virtual_stages, bool hides);

}  // namespace moebius::tune
