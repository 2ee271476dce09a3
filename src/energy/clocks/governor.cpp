#include "energy/clocks/governor.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"

namespace moebius::energy::clocks {
namespace {

constexpr std::array<const char*, 5> kModeNames = {"off", "fixed", "per-phase", "slack", "own"};
constexpr int64_t kStepsToDistrust = 3;
// Of the base's energy: less is not worth two plans.
constexpr double kWorthIt = 0.0005;
// Of the base: an overdraft that ends the chosen plans, and in allowances of a step, what they begin again
// with.
constexpr double kOverdraft = 0.01, kRecovery = 20;

bool same(const Plan& a, const Plan& b) {
  return a.name == b.name && a.seconds == b.seconds && a.joules == b.joules;
}

}  // namespace

Mode mode_named(std::string_view name) {
  for (size_t i = 0; i < kModeNames.size(); ++i)
    if (name == kModeNames[i]) return static_cast<Mode>(i);
  throw_user_error("governor mode '", name, "' is unknown; use off, fixed, per-phase, slack or own");
}

const char* mode_name(Mode mode) {
  return kModeNames[static_cast<size_t>(mode)];
}

Governor::Governor(PlanSpace space, const GovernorOptions& options)
    : space_(std::move(space)), options_(options) {
  space_.plans.insert(space_.plans.begin(), space_.base);  // number 0, always there
  late_.resize(space_.plans.size());
  choose();
  chosen_ = fast_;
}

void Governor::choose() {
  slow_.reset();
  fast_ = 0;
  PlanSpace rest = space_;
  const auto index_of = [&](const Plan& plan) {
    for (size_t i = 0; i < space_.plans.size(); ++i)
      if (same(space_.plans[i], plan)) return i;
    MOEBIUS_CHECK(false, "the plan ", plan.name, " is not in the space");
    return size_t{0};
  };
  const auto single = [&](double epsilon, bool uniform) {
    const auto best = best_plan(rest, epsilon, uniform);
    return best && best->joules < space_.base.joules ? index_of(*best) : size_t{0};
  };
  switch (options_.mode) {
    case Mode::kOff:
      return;
    case Mode::kFixed:
      fast_ = single(options_.epsilon, true);
      return;
    case Mode::kPerPhase:
      fast_ = single(options_.epsilon, false);
      return;
    case Mode::kSlack:
      fast_ = single(0, false);
      return;
    case Mode::kOwn:
      break;
  }
  fast_ = single(options_.epsilon, false);
  const std::vector<Plan> hull = convex_hull(rest);
  const double base = space_.base.seconds, limit = base * (1 + options_.epsilon);
  const auto beyond =
      std::find_if(hull.begin(), hull.end(), [&](const Plan& plan) { return plan.seconds > limit; });
  if (beyond == hull.begin() || beyond == hull.end()) return;
  const Plan &a = *(beyond - 1), &b = *beyond;
  // A cycle so long that its two changes weigh little; what they take comes out of the allowance.
  const double change = options_.switch_seconds;
  double cycle = std::min(options_.longest_cycle_seconds, 2 * change / options_.most_switching);
  cycle = std::max(cycle, 4 * base);
  const double allowed = limit - 2 * change * base / cycle;
  if (allowed <= a.seconds) return;
  const double share = (allowed - a.seconds) / (b.seconds - a.seconds);
  const double joules =
      a.joules + share * (b.joules - a.joules) + 2 * change * space_.wait_watts * base / cycle;
  if (joules >= space_.plans[fast_].joules - kWorthIt * space_.base.joules) return;
  fast_ = index_of(a);
  slow_ = index_of(b);
  // The bucket holds what the slow part of a cycle takes, and the changes.
  high_ = std::max(share * cycle / base * (b.seconds - limit), b.seconds - limit) + 2 * change;
}

void Governor::take(size_t plan) {
  if (plan == chosen_) return;
  chosen_ = plan;
  slow_steps_ = 0;
  ++changes_;
}

void Governor::give_up(size_t plan) {
  bad_.push_back(space_.plans[plan].name);
  space_.plans.erase(space_.plans.begin() + static_cast<std::ptrdiff_t>(plan));
  late_.erase(late_.begin() + static_cast<std::ptrdiff_t>(plan));
  choose();
  chosen_ = fast_;
  ++changes_;
  slow_steps_ = 0;
}

void Governor::set_base_seconds(double seconds) {
  MOEBIUS_CHECK(seconds > 0);
  time_scale_ = seconds / space_.base.seconds;
}

void Governor::after_step(double seconds) {
  const double base = space_.base.seconds * time_scale_;
  budget_ += (1 + options_.epsilon) * base - seconds;
  const double recovery = std::max(high_ * time_scale_, kRecovery * options_.epsilon * base);
  budget_ = std::min(budget_, recovery);  // no more than the bucket holds
  const bool slower = chosen_ != 0 && seconds > plan().seconds * time_scale_ * (1 + options_.distrust) +
                                                    options_.switch_seconds;
  late_[chosen_] = slower ? late_[chosen_] + 1 : 0;
  if (late_[chosen_] >= kStepsToDistrust) return give_up(chosen_);
  // Slower than the profile says, all plans alike: default clocks until there is room again.
  if (chosen_ == fast_ && fast_ != 0 && budget_ < -kOverdraft * base) return take(0);
  if (chosen_ == 0 && fast_ != 0) {
    if (budget_ >= recovery) take(fast_);
    return;
  }
  if (!slow_) return;
  if (chosen_ == fast_) {
    if (budget_ >= high_ * time_scale_) take(*slow_);
    return;
  }
  // The last step may have held a change of clock; that is no surprise.
  const double promised = plan().seconds * time_scale_;
  if (slow_steps_++ > 0) surprise_ = std::clamp(seconds / promised, 1.0, 1 + options_.distrust);
  if (budget_ < surprise_ * promised - (1 + options_.epsilon) * base + options_.switch_seconds) {
    take(fast_);  // one more slow step and the way back would overdraw it
  }
}

std::string Governor::description() const {
  if (!slow_) return space_.plans[fast_].name;
  return concat(space_.plans[fast_].name, " and ", space_.plans[*slow_].name, " in turns");
}

}  // namespace moebius::energy::clocks
