// `moebius bench moe_layer|attention|linear_ce|adamw|step --shape NAME…`: whole layers and steps at the sizes
// of known models, beside `moebius bench CASE` for single operators.
#pragma once

#include <string>
#include <vector>

namespace moebius::cli {

struct LayerBenchArguments {
  std::vector<std::string> benches;  // of layer_bench_names()
  std::vector<std::string> shapes;   // empty: all that the bench has
  std::vector<std::string> overrides;
  std::string device = "auto", dtype = "bf16", json;  // json: a file, "-" for stdout, empty for text
  int threads = 0, repeats = 20;
  int tokens = 0, sequence = 0, vocab = 0;  // instead of the shape's
  bool check = false;
  bool tune = false;  // measure the products of the experts first, into the table
  std::string table;  // of measured products; empty: ops::default_product_table_path()
  int kernels = -1;   // how many of the longest kernels are listed; negative: no profile
};

const std::vector<std::string>& layer_bench_names();

// Measures every bench at every shape, prints a line for each, and writes the JSON file. UserError for what
// the command line got wrong; runtime_error when a check failed.
void run_layer_bench(const LayerBenchArguments& arguments);

}  // namespace moebius::cli
