// Reads what providers answer (provider.h).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "energy/carbon/provider.h"

namespace moebius::energy::carbon {
namespace {

using Json = nlohmann::json;

constexpr double kGramsPerKwhOfLbsPerMwh = 0.45359237;
constexpr double kMaxGrams = 5000;

Error malformed(std::string_view what, std::string_view body) {
  return make_error(ErrorKind::kInvalid, what, " in the answer '", body.substr(0, 120),
                    body.size() > 120 ? "...'" : "'");
}

const Json* member(const Json& object, const char* name) {
  if (!object.is_object()) return nullptr;
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

// Rising, without repeats (the later one holds), with the step that most neighbours have.
Result<Answer> in_order(Answer answer, std::string_view body) {
  auto& readings = answer.readings;
  std::stable_sort(readings.begin(), readings.end(),
                   [](const Reading& a, const Reading& b) { return a.begin_unix_s < b.begin_unix_s; });
  const auto last = std::unique(readings.rbegin(), readings.rend(), [](const Reading& a, const Reading& b) {
    return a.begin_unix_s == b.begin_unix_s;
  });
  readings.erase(readings.begin(), last.base());
  int64_t step = 0;
  for (size_t i = 1; i < readings.size(); ++i) {
    const int64_t each = readings[i].begin_unix_s - readings[i - 1].begin_unix_s;
    step = step == 0 ? each : std::min(step, each);
  }
  if (step > 0) answer.step_s = step;
  if (86400 % answer.step_s != 0 || 3600 % answer.step_s != 0) return malformed("odd steps of time", body);
  for (const Reading& each : readings) {
    if (each.begin_unix_s % answer.step_s != 0)
      return malformed("a time that is no border of its step", body);
    if (!(each.grams_per_kwh >= 0 && each.grams_per_kwh <= kMaxGrams))
      return malformed(concat("intensity ", each.grams_per_kwh), body);
  }
  return answer;
}

template <class Fill>
Result<Answer> parse(std::string_view body, const Fill& fill) {
  const Json json = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return malformed("no JSON", body);
  Answer answer;
  try {
    if (const char* wrong = fill(json, answer)) return malformed(wrong, body);
  } catch (const Json::exception& error) {
    return malformed(error.what(), body);
  }
  return in_order(std::move(answer), body);
}

// Whether a time was read; adds it to the answer with its value.
bool add(Answer& answer, const Json* time, double value, bool estimated = false) {
  if (time == nullptr || !time->is_string()) return false;
  const Result<int64_t> begin = parse_utc(time->get_ref<const std::string&>());
  if (!begin) return false;
  answer.readings.push_back({*begin, value, estimated});
  return true;
}

}  // namespace

Result<int64_t> parse_utc(std::string_view text) {
  int year = 0, month = 0, day = 0, hour = 0, minute = 0, second = 0, used = 0;
  const std::string copy(text);
  const char* at = copy.c_str();
  const auto wrong = [&] { return make_error(ErrorKind::kInvalid, "'", text, "' is no time in UTC"); };
  if (std::sscanf(at, "%4d-%2d-%2dT%2d:%2d%n", &year, &month, &day, &hour, &minute, &used) != 5)
    return wrong();
  at += used;
  if (*at == ':') {
    if (std::sscanf(at, ":%2d%n", &second, &used) != 1) return wrong();
    at += used;
    if (*at == '.') at += 1 + std::string_view(at + 1).find_first_not_of("0123456789");
  }
  const std::string_view zone(at);
  if (zone != "Z" && zone != "+00:00") return wrong();
  const std::chrono::year_month_day date{std::chrono::year{year},
                                         std::chrono::month(static_cast<unsigned>(month)),
                                         std::chrono::day(static_cast<unsigned>(day))};
  if (!date.ok() || hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59)
    return wrong();
  return int64_t{std::chrono::sys_days{date}.time_since_epoch().count()} * 86400 + hour * 3600 + minute * 60 +
         second;
}

Result<Answer> parse_electricity_maps(std::string_view body, std::string_view list, std::string_view zone) {
  return parse(body, [&](const Json& json, Answer& answer) -> const char* {
    // Zones that it does not know are answered with that of the caller's address.
    if (const Json* answered = member(json, "zone");
        answered != nullptr && !zone.empty() && answered->get_ref<const std::string&>() != zone)
      return "another zone than was asked for";
    const Json* points = member(json, std::string(list).c_str());
    if (points == nullptr || !points->is_array()) return "no list of points";
    answer.signal = "average, scope not stated";
    for (const Json& point : *points) {
      const Json* value = member(point, "carbonIntensity");
      if (value == nullptr) continue;
      const Json* estimated = member(point, "isEstimated");
      if (!value->is_number() || !add(answer, member(point, "datetime"), value->get<double>(),
                                      estimated != nullptr && estimated->get<bool>()))
        return "a point without time and number";
      if (const Json* type = member(point, "emissionFactorType"))
        answer.signal = type->get<std::string>() + " average";
    }
    return nullptr;
  });
}

Result<Answer> parse_gb(std::string_view body, GbValue value) {
  return parse(body, [&](const Json& json, Answer& answer) -> const char* {
    const Json* points = member(json, "data");
    if (points == nullptr || !points->is_array()) return "no list of points";
    answer.signal = "direct average";
    answer.step_s = 1800;
    for (const Json& point : *points) {
      const Json* intensity = member(point, "intensity");
      if (intensity == nullptr) return "a point without intensity";
      const Json* number = member(*intensity, value == GbValue::kActual ? "actual" : "forecast");
      if (number == nullptr) continue;
      if (!number->is_number() || !add(answer, member(point, "from"), number->get<double>()))
        return "a point without time and number";
    }
    return nullptr;
  });
}

Result<Answer> parse_watttime(std::string_view body, std::string_view region) {
  return parse(body, [&](const Json& json, Answer& answer) -> const char* {
    const Json* points = member(json, "data");
    if (points == nullptr || !points->is_array()) return "no list of points";
    answer.signal = "marginal";
    answer.step_s = 300;
    if (const Json* meta = member(json, "meta")) {
      if (const Json* answered = member(*meta, "region");
          answered != nullptr && !region.empty() && answered->get_ref<const std::string&>() != region)
        return "another region than was asked for";
      const Json* units = member(*meta, "units");
      if (units != nullptr && units->get<std::string>() != "lbs_co2_per_mwh")
        return "units that are not lbs_co2_per_mwh, so no intensity,";
      if (const Json* warnings = member(*meta, "warnings")) {
        for (const Json& each : *warnings) {
          if (const Json* text = member(each, "message")) answer.warnings.push_back(text->get<std::string>());
        }
      }
    }
    for (const Json& point : *points) {
      const Json* value = member(point, "value");
      if (value == nullptr) continue;
      if (!value->is_number() ||
          !add(answer, member(point, "point_time"), value->get<double>() * kGramsPerKwhOfLbsPerMwh))
        return "a point without time and number";
    }
    return nullptr;
  });
}

}  // namespace moebius::energy::carbon
