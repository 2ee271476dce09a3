#include "queue/scaling.h"

#include <algorithm>

#include "base/check.h"
#include "base/csv.h"
#include "base/distance.h"
#include "base/error.h"

namespace moebius::queue {

ScalingProfile::ScalingProfile(const std::vector<double>& speeds, const std::vector<double>& powers) {
  MOEBIUS_CHECK(!speeds.empty() && speeds.size() == powers.size());
  speed_.assign(1, 0);
  power_.assign(1, 0);
  for (size_t i = 0; i < speeds.size(); ++i) {
    speed_.push_back(speeds[i] / speeds[0]);
    power_.push_back(powers[i] / powers[0]);
  }
  fastest_ = static_cast<int>(std::max_element(speed_.begin(), speed_.end()) - speed_.begin());
  max_speed_ = speed_[fastest_];
}

ScalingProfile read_scaling(const std::filesystem::path& file, const std::string& name) {
  constexpr int64_t kMaxWorkers = 4096;
  CsvTable table(file, "scaling profiles");
  const size_t profile = table.column("profile"), workers = table.column("workers"),
               throughput = table.column("throughput_per_s"), power = table.column("power_w");
  std::vector<std::string> names;
  std::vector<double> speeds, powers;
  while (table.next()) {
    const std::string each(table.text(profile));
    if (std::find(names.begin(), names.end(), each) == names.end()) names.push_back(each);
    if (!name.empty() ? each != name : names.size() > 1) continue;
    const int64_t count = table.whole(workers, 1, kMaxWorkers);
    if (count != static_cast<int64_t>(speeds.size()) + 1) {
      table.refuse(workers, concat("is not ", speeds.size() + 1,
                                   "; a profile has a row for each number of workers, rising from 1"));
    }
    speeds.push_back(table.number(throughput, 1e-9, 1e18));
    powers.push_back(table.number(power, 1e-9, 1e9));
  }
  if (name.empty() && names.size() > 1) {
    throw_user_error(table.name(), ": holds ", names.size(), " profiles (", names[0], ", ", names[1],
                     names.size() > 2 ? ", ..." : "", "); choose one with --profile");
  }
  if (speeds.empty()) {
    const auto nearest = nearest_name(name, names);
    throw_user_error(table.name(), ": has no profile '", name, "'",
                     nearest         ? concat("; is it '", *nearest, "'?")
                     : names.empty() ? std::string("; it holds none")
                                     : concat("; it holds ", names[0], names.size() > 1 ? ", ..." : ""));
  }
  return {speeds, powers};
}

}  // namespace moebius::queue
