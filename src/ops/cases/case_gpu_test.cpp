// Every small case on the GPU.
#include "ops/cases/case_test.h"
#include "ops/cases/check.h"
#include "ops/device.h"

namespace moebius::ops::cases {
namespace {

class OpCaseOnGpu : public testing::TestWithParam<CaseRun> {};

TEST_P(OpCaseOnGpu, matches_the_double_reference) {
  if (cuda_plugin() == nullptr) GTEST_SKIP() << load_cuda_plugin().why;
  const CheckResult result = check_case(*GetParam().op_case, GetParam().dtype, at::Device(at::kCUDA, 0));
  for (const std::string& problem : result.problems) ADD_FAILURE() << problem;
}

std::vector<CaseRun> gpu_runs() {
  std::vector<CaseRun> runs;
  for (const CaseRun& run : small_runs())
    if (run.op_case->cuda) runs.push_back(run);
  return runs;
}

INSTANTIATE_TEST_SUITE_P(Cases, OpCaseOnGpu, testing::ValuesIn(gpu_runs()), test_name);

}  // namespace
}  // namespace moebius::ops::cases
