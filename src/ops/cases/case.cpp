#include "ops/cases/case.h"

namespace moebius::ops::cases {

const CaseList& all_cases() {
  static const CaseList list = [] {
    CaseList cases;
    add_norm_cases(cases);
    add_rope_cases(cases);
    add_attention_cases(cases);
    add_product_cases(cases);
    add_swiglu_cases(cases);
    add_route_cases(cases);
    add_expert_cases(cases);
    add_int8_cases(cases);
    add_loss_cases(cases);
    add_optimizer_cases(cases);
    return cases;
  }();
  return list;
}

std::vector<at::ScalarType> both_dtypes() {
  return {at::kFloat, at::kBFloat16};
}

}  // namespace moebius::ops::cases
