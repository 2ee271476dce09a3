#include "energy/grid_intensity.h"

#include <ctime>

#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"

namespace moebius::energy {
namespace {

double parse_replay_start(const std::string& text) {
  std::tm parts{};
  const char* end = strptime(text.c_str(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  if (end == nullptr || *end != '\0')
    throw_user_error("energy.grid_from is '", text, "', not a time like 2022-06-01T00:00:00Z");
  return static_cast<double>(timegm(&parts));
}

}  // namespace

GridIntensity::GridIntensity(const GridOptions& options, double start_unix) {
  const bool has_trace = !options.trace.empty();
  if (options.constant_g_per_kwh > 0 && has_trace)
    throw_user_error("energy.grid_intensity is ", options.constant_g_per_kwh, " and energy.grid_trace is '",
                     options.trace.string(), "'; name one of them, grams are counted once");
  if (!has_trace) {
    constant_ = options.constant_g_per_kwh;
    if (constant_ == 0) return;
    zone_ = "constant";
    signal_ = concat(options.scope, " ", options.kind);
    description_ = concat("constant ", constant_, " g/kWh, ", signal_, ", ",
                          options.source.empty() ? "source not named (energy.grid_source)" : options.source);
    return;
  }
  const auto scope = options.scope == "direct" ? carbon::Scope::kDirect : carbon::Scope::kLifecycle;
  trace_ = carbon::read_trace(options.trace, {.scope = scope});
  const double start = options.replay_from.empty() ? start_unix : parse_replay_start(options.replay_from);
  const auto first = static_cast<double>(trace_->start_unix_s);
  offset_s_ = start - first;
  const double length = static_cast<double>(trace_->values.size()) * static_cast<double>(trace_->step_s);
  if (offset_s_ < 0 || offset_s_ >= length)
    throw_user_error("energy.grid_trace ", options.trace.string(), " runs from ", iso_time(first), " to ",
                     iso_time(first + length), " and does not hold ", iso_time(start),
                     options.replay_from.empty()
                         ? "; take a trace of today, or replay a recorded day: energy.grid_from = "
                           "\"2022-06-01T00:00:00Z\""
                         : "; choose another energy.grid_from");
  zone_ = trace_->zone;
  signal_ = trace_->signal;
  description_ = concat("recorded trace of ", zone_, " (", options.trace.filename().string(), "), ", signal_,
                        options.replay_from.empty() ? "" : concat(", replayed from ", iso_time(start)),
                        options.source.empty() ? "" : ", ", options.source);
}

std::optional<double> GridIntensity::at(double seconds) const {
  if (!trace_) return constant_ > 0 ? std::optional(constant_) : std::nullopt;
  const double step = (offset_s_ + seconds) / static_cast<double>(trace_->step_s);
  if (step < 0 || step >= static_cast<double>(trace_->values.size())) return std::nullopt;
  return trace_->values[static_cast<size_t>(step)];
}

}  // namespace moebius::energy
