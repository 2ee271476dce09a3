// The picture of `moebius data stats`: document lengths, and what each batching policy makes of them.
#pragma once

#include <string>
#include <vector>

#include "data/length_list.h"

namespace moebius::cli {

struct PolicyResult {
  std::string policy;
  double token_efficiency = 0, imbalance_cost = 0;
};

// An SVG file: shares of documents and of tokens by length class; below, bars of token efficiency with the
// imbalance beside.
std::string plot_lengths(const std::string& title, const data::LengthSummary& summary,
                         const std::vector<PolicyResult>& policies);

}  // namespace moebius::cli
