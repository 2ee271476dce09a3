// SwiGLU activation on interleaved gate/up columns: out[f] = silu(gate_up[2f]) * gate_up[2f + 1].
// (Shazeer 2020, "GLU Variants Improve Transformer")
// Interleaving lets a matrix kernel apply the activation to the pair it holds in registers.
#pragma once

#include "kernels/api/types.h"

namespace moebius::kernels {

struct SwigluForwardArgs {
  const void* gate_up;        // (R, 2F)
  void* out;                  // (R, F) out
  const int32_t* valid_rows;  // pointer (device memory for device kernels) to the number of rows that count,
                              // or null for all; rows past it are written as zeros
  int64_t num_rows;           // R
  int64_t width;              // F
  DType dtype;
};

// The routed-experts form multiplies each row by its router weight w after the down projection; with
// g = (gradient after the weight) x W_down = `grad_out`, the three results below need no stored expert
// output:
//   grad_gate_up = dswiglu(gate_up, w * g);  act_scaled = w * act;  grad_row_scale = sum_f g[f] * act[f].
struct SwigluBackwardArgs {
  const void* gate_up;        // (R, 2F)
  const void* grad_out;       // (R, F)
  const float* row_scale;     // (R) w, or null for 1
  void* grad_gate_up;         // (R, 2F) out; may be gate_up
  void* act_scaled;           // (R, F) out: w * act, or null; may be grad_out
  float* grad_row_scale;      // (R) out, or null
  const int32_t* valid_rows;  // as above
  int64_t num_rows;
  int64_t width;
  DType dtype;
  // (R) or null: w of row r and its gradient are elements slots[r] of row_scale and grad_row_scale instead;
  // elements of no row that counts are left unwritten.
  const int32_t* slots = nullptr;
};

}  // namespace moebius::kernels
