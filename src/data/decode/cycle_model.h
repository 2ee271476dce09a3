// What an FPGA would do with the kernel of json_lines.cl, by arithmetic. Nothing here is measured: a
// synthesis run would have to confirm the clock, the initiation interval and the size of an engine.
#pragma once

#include <cstdint>

namespace moebius::data {

struct FpgaAssumptions {
  double clock_mhz = 300;           // usual for Vitis kernels on an Alveo U200
  double cycles_per_byte = 1;       // initiation interval of the loop: one byte a turn
  int64_t cycles_per_batch = 5000;  // starting the kernel and filling the pipeline
  int64_t engines = 8;              // copies that work on batches side by side
  double pcie_gb_per_second = 12;   // gen 3 x16, each way
  double board_watts = 40;          // of the card above idle, with this load
};

struct FpgaPrediction {
  double engine_gb_per_second = 0;
  double gb_per_second = 0;  // of JSON text, all engines, bounded by PCIe in and out
  bool is_bound_by_pcie = false;
  double joules_per_gb = 0;  // of the card
};

// For `text_bytes` of JSON lines in batches of `batch_bytes`, of which the kernel gives `out_bytes` back.
FpgaPrediction predict_fpga(const FpgaAssumptions& assumptions, int64_t text_bytes, int64_t out_bytes,
                            int64_t batch_bytes);

}  // namespace moebius::data
