// Test parameters made of the registry's cases.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <ostream>
#include <string>
#include <vector>

#include "ops/cases/case.h"

namespace moebius::ops::cases {

struct CaseRun {
  const OpCase* op_case;
  at::ScalarType dtype;
};

inline std::string dtype_name(at::ScalarType dtype) {
  return dtype == at::kFloat ? "fp32" : "bf16";
}

inline std::ostream& operator<<(std::ostream& out, const CaseRun& run) {
  return out << run.op_case->name << " in " << dtype_name(run.dtype);
}

// Every small case in every dtype it has.
inline std::vector<CaseRun> small_runs() {
  std::vector<CaseRun> runs;
  for (const OpCase& op_case : all_cases())
    if (op_case.size == Size::small)
      for (const at::ScalarType dtype : op_case.dtypes) runs.push_back({&op_case, dtype});
  return runs;
}

inline std::string test_name(const testing::TestParamInfo<CaseRun>& info) {
  std::string name = info.param.op_case->name + "_" + dtype_name(info.param.dtype);
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

}  // namespace moebius::ops::cases
