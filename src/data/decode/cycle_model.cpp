#include "data/decode/cycle_model.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"

namespace moebius::data {

FpgaPrediction predict_fpga(const FpgaAssumptions& assumptions, int64_t text_bytes, int64_t out_bytes,
                            int64_t batch_bytes) {
  MOEBIUS_CHECK(text_bytes > 0 && batch_bytes > 0 && assumptions.engines > 0);
  const auto bytes = static_cast<double>(text_bytes);
  const double batches = std::ceil(bytes / static_cast<double>(batch_bytes));
  const double cycles =
      bytes * assumptions.cycles_per_byte + batches * static_cast<double>(assumptions.cycles_per_batch);
  FpgaPrediction predicted;
  predicted.engine_gb_per_second = bytes / cycles * assumptions.clock_mhz * 1e6 / 1e9;
  const double engines = predicted.engine_gb_per_second * static_cast<double>(assumptions.engines);
  // Both ways run at once; texts are never longer than their lines.
  const double pcie =
      assumptions.pcie_gb_per_second * bytes / static_cast<double>(std::max(text_bytes, out_bytes));
  predicted.is_bound_by_pcie = pcie < engines;
  predicted.gb_per_second = std::min(engines, pcie);
  predicted.joules_per_gb = assumptions.board_watts / predicted.gb_per_second;
  return predicted;
}

}  // namespace moebius::data
