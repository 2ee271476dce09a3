// CarbonScaler's greedy with the forecast of the arrival. It knows of no switching cost: work that switching
// loses is planned again, greedily, when the plan ends.
#include "queue/policy.h"
#include "queue/slots.h"

namespace moebius::queue {
namespace {

class Elastic final : public Policy {
 public:
  std::vector<Piece> plan(const Situation& s) const override {
    return greedy_plan(s, slots_until(s, static_cast<double>(s.job.deadline_s())));
  }
};

}  // namespace

std::unique_ptr<Policy> make_elastic_policy() {
  return std::make_unique<Elastic>();
}

}  // namespace moebius::queue
