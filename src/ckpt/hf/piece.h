// Which part of a parameter one tensor of a Hugging Face checkpoint holds (piece_copy.h copies between the
// two layouts). Without torch.
//
// Moebius keeps query, key and value rows in one parameter, gate and up rows interleaved, all experts of a
// layer in one parameter, and rotary channels in halves (i, i + d/2). On disk each of these is a tensor of
// its own, and some families order rotary channels as pairs (2i, 2i + 1).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moebius::ckpt::hf {

// Rows of every head whose rotary channels are pairs on disk: `dim` rows from `begin` of each `head_rows`.
struct RotaryPairs {
  int64_t head_rows = 0;  // 0: none
  int64_t begin = 0;
  int64_t dim = 0;
};

struct Piece {
  std::string name;            // on disk: "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // on disk
  std::string param;           // ours: "layers.0.attention.qkv"
  int64_t expert = -1;         // index of the parameter's first dim; -1: the parameter has no experts, or all
  int64_t row_begin = 0;       // of the first dim that is left
  int64_t row_step = 1;
  bool transposed = false;  // the last two dims are swapped on disk
  RotaryPairs pairs = {};
  bool halves_swapped = false;  // the halves of the columns are the other way round on disk
  bool is_copy = false;         // another piece has the same values; a folder may lack it

  int64_t num_elements() const {
    int64_t count = 1;
    for (const int64_t dim : shape) count *= dim;
    return count;
  }
};

}  // namespace moebius::ckpt::hf
