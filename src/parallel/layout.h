// How the ranks of a run are laid out over named axes: arithmetic alone, no communication and no tensors.
//
// Attention and dense layers: world = pp x dp x fsdp x cp x tp, with tp fastest (ranks of a tensor group are
// neighbours: they talk most) and pp slowest. Ranks that differ in dp or fsdp see other sequences; ranks that
// differ in cp see other parts of them. Experts fold the same ranks of one pipeline stage anew (as parallel
// folding in Megatron-Core does): stage = expert_data x ep x expert_tp, expert_tp fastest. With expert_tp =
// tp an expert group lies across data ranks; with expert_tp = 1 across tensor ranks first. On a grid of
// tensor ranks experts are dealt out to its rows and their hidden units to its columns: ep and expert_tp are
// both its side, and lie as its columns and rows do.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "config/model_config.h"
#include "config/parallel_config.h"
#include "config/train_config.h"

namespace moebius::parallel {

enum class Axis : uint8_t {
  world,
  pp,       // stages; carries what goes to a later one
  pp_back,  // the same ranks; carries what goes to an earlier one, which nothing in front of it holds up then
  dp,
  fsdp,
  cp,
  tp,
  data,   // dp x fsdp x cp: ranks that hold the same part of dense layers and see other tokens
  shard,  // fsdp x cp: those of one copy of what parallel.zero_stage splits; of one rank without cp, where it
          // is fsdp
  ep,
  ep_sizes,  // the same ranks; carries how many tokens go where, which none of them hold up then. Of one rank
             // without parallel.ep_pairs
  ep_node,   // neighbours of ep that share a machine, and
  ep_rail,   // ranks with one place on their machines; both of one rank where parallel.ep_node_size is 0
  expert_tp,
  // With parallel.tp_mode = "2d" the tensor ranks as a grid, row by row: ranks that see the same tokens, and
  // ranks that hold the same columns of activations. Both of one rank else.
  tp_row,
  tp_column,
  expert_data,  // ranks that hold the same part of the same experts
};
inline constexpr Axis kAxes[] = {
    Axis::world,   Axis::pp,        Axis::pp_back, Axis::dp,        Axis::fsdp,       Axis::cp,
    Axis::tp,      Axis::data,      Axis::shard,   Axis::ep,        Axis::ep_sizes,   Axis::ep_node,
    Axis::ep_rail, Axis::expert_tp, Axis::tp_row,  Axis::tp_column, Axis::expert_data};
// "data"
const char* name_of(Axis axis);

class Layout {
 public:
  struct Sizes {
    int pp = 1, dp = 1, fsdp = 1, cp = 1, tp = 1, ep = 1, expert_tp = 1;
    int ep_node = 1;        // divides ep; 1: one level
    int tp_side = 1;        // of the grid of tensor ranks, tp = tp_side^2; 1: they are a line
    bool ep_pairs = false;  // passes in turns, beside which sizes travel on ep_sizes
  };
  Layout() = default;  // one process
  // CHECK: all at least 1, ep x expert_tp divides a stage, and ep_node divides ep.
  explicit Layout(const Sizes& sizes);

  int size(Axis axis) const;
  int world() const { return size(Axis::world); }
  // The rank's number on the axis.
  int index(Axis axis, int rank) const;
  // World ranks that differ from `rank` on this axis alone, itself included, ascending: index() counts in
  // this order.
  std::vector<int> group(Axis axis, int rank) const;
  // Number of parts of a batch, and whose part a rank has: ranks of tp, cp and pp see the same sequences.
  int batch_parts() const { return sizes_.dp * sizes_.fsdp; }
  int batch_part(int rank) const;
  // Whether a rank counts the tokens and targets of its part in sums over the axis `data`: of ranks that
  // share sequences the first does.
  bool counts_part(int rank) const { return index(Axis::cp, rank) == 0; }
  const Sizes& sizes() const { return sizes_; }

 private:
  int stage_size() const { return sizes_.dp * sizes_.fsdp * sizes_.cp * sizes_.tp; }

  Sizes sizes_;
};

// Of the grid that parallel.tp_mode = "2d" makes of the tensor ranks; 1 where they are a line.
int64_t grid_side(const config::ParallelConfig& config);

// UserError, with the way out, when the model or what is set beside it does not go with that grid.
void check_grid(const config::RunConfig& config);

// The layout of `world` processes: fills in what `config` leaves open (0). UserError, with what would fit,
// when the processes cannot be laid out so, or the model's or the batch's sizes do not allow it, or an axis
// is asked for that is not there yet. `world` = 1 with everything at its default is one process.
Layout make_layout(const config::RunConfig& config, int world);

// "4 processes: dp 2 x tp 2 (experts: ep 2 x expert_data 1 x expert_tp 2)"; axes of one rank are left out.
std::string describe(const Layout& layout);

}  // namespace moebius::parallel
