// Linked into test programs that may use the GPU: looks for the CUDA plug-in before the first tensor exists.
#include <gtest/gtest.h>

#include "ops/device.h"

namespace moebius::ops {
namespace {

class PluginEnvironment final : public testing::Environment {
 public:
  void SetUp() override { load_cuda_plugin(); }
};

[[maybe_unused]] const testing::Environment* const kEnvironment =
    testing::AddGlobalTestEnvironment(std::make_unique<PluginEnvironment>().release());

}  // namespace
}  // namespace moebius::ops
