// Every small case on the CPU, and every reference against finite differences.
#include <set>

#include "ops/cases/case_test.h"
#include "ops/cases/check.h"

namespace moebius::ops::cases {
namespace {

class OpCaseOnCpu : public testing::TestWithParam<CaseRun> {};

TEST_P(OpCaseOnCpu, matches_the_double_reference) {
  const CheckResult result = check_case(*GetParam().op_case, GetParam().dtype, at::kCPU);
  for (const std::string& problem : result.problems) ADD_FAILURE() << problem;
}

INSTANTIATE_TEST_SUITE_P(Cases, OpCaseOnCpu, testing::ValuesIn(small_runs()), test_name);

class OpCaseReference : public testing::TestWithParam<CaseRun> {};

TEST_P(OpCaseReference, has_the_gradients_of_finite_differences) {
  const CheckResult result = check_reference(*GetParam().op_case);
  for (const std::string& problem : result.problems) ADD_FAILURE() << problem;
}

std::vector<CaseRun> each_small_case() {
  std::vector<CaseRun> runs;
  for (const CaseRun& run : small_runs())
    if (runs.empty() || runs.back().op_case != run.op_case) runs.push_back(run);
  return runs;
}

INSTANTIATE_TEST_SUITE_P(Cases, OpCaseReference, testing::ValuesIn(each_small_case()), test_name);

TEST(OpCases, have_names_of_their_own) {
  std::set<std::string> names;
  for (const OpCase& op_case : all_cases()) EXPECT_TRUE(names.insert(op_case.name).second) << op_case.name;
}

}  // namespace
}  // namespace moebius::ops::cases
