// Blocks of bf16 matrix products on Intel's AMX tiles (TDPBF16PS: 16 x 16 sums of 32 products each). The same
// contract as gemm_block.h; packing and loop structure are portable, the four inner routines exist with AMX
// and AVX-512, and in plain C++ so that the packing is tested on every machine. Instruction set: Intel,
// "Architecture Instruction Set Extensions Programming Reference", chapter on AMX.
#pragma once

#include "kernels/cpu/gemm_block.h"

namespace moebius::kernels::cpu {

inline constexpr int64_t kAmxRows = 32, kAmxCols = 32;  // of C in a step of four tiles
inline constexpr int64_t kAmxMaxWords = 512;            // pairs along k in a packed stretch

enum class AmxMode : uint8_t {
  automatic,  // the hardware where it has AMX and the system grants it
  portable,   // plain C++ (tests)
  off
};

// For tests; the default is automatic. Not to be changed while products run.
void set_amx_mode(AmxMode mode);

// Whether bf16 blocks go through run_amx_block.
bool amx_is_used();

// Blocks with more than kSkinnyRows rows, dtype bf16.
void run_amx_block(const GemmBlock& block);

}  // namespace moebius::kernels::cpu
