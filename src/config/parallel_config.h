// How a run is spread over several processes (docs/distributed.md). One process is one device.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/field.h"

namespace moebius::config {

struct ParallelConfig {
  int64_t dp = 0;
  int64_t fsdp = 0;
  int64_t tp = 1;
  std::string tp_mode = "1d";
  bool sequence_parallel = true;
  int64_t ep = 1;
  int64_t ep_chunks = 2;
  bool ep_pairs = false;
  int64_t ep_node_size = 0;
  int64_t expert_tp = 0;
  int64_t pp = 1;
  std::string pp_schedule = "1f1b";
  int64_t pp_chunks = 1;
  std::vector<int64_t> pp_layers = {};
  int64_t cp = 1;
  int64_t zero_stage = 0;
  double bucket_mb = 25;
  std::string backend = "auto";
  double timeout_s = 300;
  bool overlap = true;
};

template <class V>
void describe(V& v, ParallelConfig& c) {
  v.field("dp", c.dp, range(0, 1 << 20), "ranks",
          "Copies of the model that see different sequences; 0: what the number of processes leaves.");
  v.field(
      "fsdp", c.fsdp, range(0, 1 << 20), "ranks",
      "Ranks that see different sequences and share one copy of what parallel.zero_stage splits; 0: what the "
      "number of processes leaves when zero_stage is above 0, else 1.");
  v.field("tp", c.tp, range(1, 1 << 20), "ranks",
          "Ranks that split each attention and dense product among them (tensor parallel).");
  v.field("tp_mode", c.tp_mode, one_of({"1d", "2d"}), "",
          "1d: each weight is split in one dim; 2d: weights and activations in blocks on a square grid of "
          "parallel.tp ranks, for less memory and traffic that falls with their number "
          "(docs/tensor-parallel.md).");
  v.field("sequence_parallel", c.sequence_parallel, any(), "",
          "Between the products that parallel.tp splits each rank has its share of the tokens, else all of "
          "them: the same traffic for 1 / tp of the activations there. With tp_mode = \"2d\" it always has a "
          "block.");
  v.field("ep", c.ep, range(1, 1 << 20), "ranks",
          "Ranks that the experts are dealt out to (expert parallel).");
  v.field("ep_chunks", c.ep_chunks, range(1, 64), "",
          "Pieces in which a layer's tokens travel to their experts, so that one travels while another is "
          "computed. More hide more, and each reads the experts' weights again.");
  v.field("ep_pairs", c.ep_pairs, any(), "",
          "Micro-batches pass through the layers two by two, in turns: while tokens of one travel to their "
          "experts, the other is computed. Hides more than chunks do (set parallel.ep_chunks = 1), costs the "
          "activations of a second micro-batch.");
  v.field("ep_node_size", c.ep_node_size, range(0, 1 << 20), "ranks",
          "Neighbouring ranks of ep that share a machine: tokens cross between machines once for all experts "
          "that they go to there, then spread within it. Saves the slower links, costs a second exchange per "
          "layer. 0: all ranks alike.");
  v.field(
      "expert_tp", c.expert_tp, range(0, 1 << 20), "ranks",
      "Ranks that split each expert; 0: as parallel.tp. 1 with tp above 1: ep counts over tensor ranks too.");
  v.field("pp", c.pp, range(1, 1 << 20), "stages",
          "Groups of consecutive layers, each on its own ranks (pipeline).");
  v.field("pp_schedule", c.pp_schedule, one_of({"1f1b", "interleaved", "zero_bubble"}), "",
          "How stages take turns: 1f1b one micro-batch forward, one backward; interleaved several groups of "
          "layers per stage (parallel.pp_chunks), less idle time for more traffic; zero_bubble gradients of "
          "weights fill the gaps, for more memory on later stages.");
  v.field("pp_chunks", c.pp_chunks, range(1, 1 << 20), "groups",
          "Groups of layers per stage, with parallel.pp_schedule = \"interleaved\".");
  v.field(
      "pp_layers", c.pp_layers, at_least(1), "",
      "Layers of each group, in the order of the model; empty: dealt out by their arithmetic, that of the "
      "output layer included.");
  v.field("cp", c.cp, range(1, 1 << 20), "ranks",
          "Ranks that share each sequence among them (context parallel).");
  v.field(
      "zero_stage", c.zero_stage, range(0, 3), "",
      "What the ranks of fsdp split: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.");
  v.field("backend", c.backend, one_of({"auto", "gloo", "nccl"}), "",
          "What moves data between processes: NCCL between GPUs, Gloo between CPUs and, through host memory, "
          "between "
          "GPUs; auto: NCCL where each process has a GPU of its own.");
  v.field("bucket_mb", c.bucket_mb, range(0.001, 1e6), "MB",
          "Gradients that travel together, as soon as the last of them is complete; at most a sixteenth of "
          "the model, so that there are some to overlap.");
  v.field("timeout_s", c.timeout_s, range(1, 1e6), "s",
          "How long ranks wait for each other, at the start and in each exchange, before the run ends.");
  v.field("overlap", c.overlap, any(), "",
          "Compute while data travels. false waits for every exchange at once, with the same results: to "
          "measure what overlap gains.");
}

}  // namespace moebius::config
