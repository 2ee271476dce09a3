// The configs that come with the program load, and their benchmark shapes have the sizes that they are named
// for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "base/concat.h"
#include "config/load.h"

namespace moebius::config {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;

std::vector<fs::path> config_files(const fs::path& root) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(root / "configs"))
    if (entry.path().extension() == ".toml") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

TEST(ExampleConfigs, every_file_loads) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  const std::vector<fs::path> files = config_files(root);
  EXPECT_GE(files.size(), 5u);
  for (const fs::path& file : files) EXPECT_NO_THROW(load_run_config(file)) << file;
}

struct Sizes {
  const char* name;
  int64_t dim, layers, heads, kv_heads, experts, top_k, expert_dim, vocab, sequence, batch;
};

// The sizes that published comparisons with these names are made at.
TEST(ExampleConfigs, benchmark_shapes_keep_their_sizes) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr) GTEST_SKIP() << "MOEBIUS_SOURCE_DIR is not set (ctest sets it)";
  for (const Sizes& s : {Sizes{"cpu-d128", 128, 4, 4, 4, 8, 2, 256, 256, 256, 8},
                         Sizes{"cpu-d384", 384, 6, 6, 6, 8, 2, 640, 4096, 512, 8},
                         Sizes{"mixtral-2l", 4096, 2, 32, 8, 8, 2, 14336, 32000, 4096, 4},
                         Sizes{"olmoe-6l", 2048, 6, 16, 16, 64, 8, 1024, 32000, 4096, 4},
                         Sizes{"qwen3-4l", 2048, 4, 32, 4, 128, 8, 768, 32000, 4096, 4}}) {
    SCOPED_TRACE(s.name);
    const RunConfig c = load_run_config(fs::path(root) / "configs/bench" / concat(s.name, ".toml"));
    const std::vector<int64_t> found = {
        c.model.dim,       c.model.layers,         c.model.heads, c.model.kv_heads, c.model.moe.experts,
        c.model.moe.top_k, c.model.moe.expert_dim, c.model.vocab, c.train.sequence, c.train.batch};
    EXPECT_THAT(found, ElementsAre(s.dim, s.layers, s.heads, s.kv_heads, s.experts, s.top_k, s.expert_dim,
                                   s.vocab, s.sequence, s.batch));
    EXPECT_TRUE(c.data.synthetic);
    EXPECT_EQ(c.model.moe.balance.aux_loss, 0.0);
    // On the GPU like for like with peers that hold weights, gradients and moments in bf16 alone.
    const bool on_gpu = c.model.vocab == 32000;
    EXPECT_EQ(c.train.precision, on_gpu ? "bf16" : "fp32");
    EXPECT_EQ(c.optimizer.master_weights, !on_gpu);
    EXPECT_EQ(c.optimizer.state_dtype, on_gpu ? "bf16" : "fp32");
  }
}

}  // namespace
}  // namespace moebius::config
