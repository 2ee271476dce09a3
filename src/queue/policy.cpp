#include "queue/policy.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <limits>

#include "base/check.h"
#include "base/distance.h"
#include "base/error.h"

namespace moebius::queue {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Policy> (*make)();
};
constexpr std::array<Entry, 8> kPolicies = {{{"now", make_now_policy},
                                             {"lowest_slot", make_lowest_slot_policy},
                                             {"lowest_window", make_lowest_window_policy},
                                             {"carbon_time", make_carbon_time_policy},
                                             {"ecovisor", make_ecovisor_policy},
                                             {"wait_awhile", make_wait_awhile_policy},
                                             {"elastic", make_elastic_policy},
                                             {"own", make_own_policy}}};
constexpr std::array<std::array<const char*, 2>, 4> kAliases = {
    {{"run_now", "now"}, {"threshold", "ecovisor"}, {"greedy", "elastic"}, {"carbonscaler", "elastic"}}};

}  // namespace

const std::vector<std::string>& policy_names() {
  static const std::vector<std::string> names = [] {
    std::vector<std::string> list;
    for (const Entry& each : kPolicies) list.emplace_back(each.name);
    return list;
  }();
  return names;
}

std::string canonical_policy_name(std::string_view name) {
  std::string plain;
  for (const char c : name)
    plain += c == '-' || c == ' ' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const auto& alias : kAliases) {
    if (plain == alias[0]) plain = alias[1];
  }
  const auto& names = policy_names();
  if (std::find(names.begin(), names.end(), plain) != names.end()) return plain;
  std::vector<std::string> known = names;
  for (const auto& alias : kAliases) known.emplace_back(alias[0]);
  std::string list;
  for (const std::string& each : names) list += (list.empty() ? "" : ", ") + each;
  const auto nearest = nearest_name(plain, known);
  throw_user_error("--policy is '", name, "', which is none of ", list,
                   nearest ? "; is it " + *nearest + "?" : std::string());
}

std::unique_ptr<Policy> make_policy(const std::string& canonical_name) {
  for (const Entry& each : kPolicies) {
    if (canonical_name == each.name) return each.make();
  }
  MOEBIUS_CHECK(false, "no policy ", canonical_name);
  return nullptr;
}

void append(std::vector<Piece>& pieces, Piece piece) {
  if (!(piece.begin_s < piece.end_s)) return;
  if (!pieces.empty() && pieces.back().end_s == piece.begin_s && pieces.back().workers == piece.workers) {
    pieces.back().end_s = piece.end_s;
  } else {
    pieces.push_back(piece);
  }
}

std::vector<Piece> run_on(const Calendar& calendar, const Job& job, double begin_s, double run_s,
                          int workers) {
  std::vector<Piece> pieces;
  double at = begin_s;
  while (run_s > kRounding) {
    // The next stretch with room, however short, then as much of it as is needed.
    at = calendar.next_fit(at, std::numeric_limits<double>::min(), job.width * workers);
    const std::vector<Piece> free = calendar.free_stretches(at, at + run_s, job.width, workers);
    for (const Piece& each : free) {
      if (each.workers >= workers) {
        append(pieces, each);
        run_s -= each.end_s - each.begin_s;
      }
      at = each.end_s;
    }
  }
  return pieces;
}

}  // namespace moebius::queue
