#include <algorithm>
#include <array>

#include "base/concat.h"
#include "base/units.h"
#include "cli/energy_report.h"
#include "cli/svg.h"

namespace moebius::cli {
namespace {

constexpr double kPlotWidth = 820, kPlotLeft = 70, kPlotRight = 20, kAreaTop = 50, kAreaHeight = 240;
constexpr double kRowHeight = 22, kNameWidth = 90;
constexpr std::array<const char*, energy::kNumPhases> kPhaseColours = {
    "#4878a8", "#d98032", "#8a5fa8", "#4f9d5b", "#c7b42c", "#7a5c45", "#d0648a", "#3f8f8f", "#b0b0b0"};
static_assert(kPhaseColours.back() != nullptr, "a colour for each phase");

// Stacked power of the phases over time, a column per stretch.
std::string power_area(const EnergyReport& report) {
  double highest = 1e-9, length = 1e-9;
  for (const auto& each : report.stretches) {
    highest = std::max(highest, energy::sum_of(each.watts));
    length = std::max(length, each.end_seconds);
  }
  const double width = kPlotWidth - kPlotLeft - kPlotRight, bottom = kAreaTop + kAreaHeight;
  std::string out;
  for (const auto& each : report.stretches) {
    const double x = kPlotLeft + width * each.begin_seconds / length;
    const double across = width * (each.end_seconds - each.begin_seconds) / length;
    double y = bottom;
    for (size_t i = 0; i < energy::kNumPhases; ++i) {
      const double height = kAreaHeight * each.watts[i] / highest;
      if (height <= 0) continue;
      y -= height;
      out += svg::rect(x, y, across, height, kPhaseColours[i], 2);
    }
  }
  out += svg::text(kPlotLeft - 8, kAreaTop + 10, "end",
                   concat(svg::number(highest, highest < 10 ? 1 : 0), " W"));
  out += svg::text(kPlotLeft - 8, bottom, "end", "0");
  out += svg::text(kPlotLeft, bottom + 16, "start", "0 s");
  return out + svg::text(kPlotWidth - kPlotRight, bottom + 16, "end", format_duration(length));
}

std::string phase_bars(const EnergyPart& part, double top) {
  double highest = 1e-9;
  for (const double joules : part.joules) highest = std::max(highest, joules);
  std::string out;
  double y = top;
  for (size_t i = 0; i < energy::kNumPhases; ++i) {
    if (part.joules[i] <= 0) continue;
    const double width = (kPlotWidth - kNameWidth - 260) * part.joules[i] / highest;
    out += svg::text(kNameWidth - 8, y + 15, "end", energy::kPhaseNames[i]);
    out += svg::rect(kNameWidth, y + 3, width, kRowHeight - 6, kPhaseColours[i], 2);
    out +=
        svg::text(kNameWidth + width + 6, y + 15, "start",
                  concat(svg::number(part.joules[i], part.joules[i] < 100 ? 2 : 0), " J, ",
                         svg::number(100 * part.joules[i] / part.total_joules, 1), " % of energy, ",
                         svg::number(100 * part.seconds[i] / energy::sum_of(part.seconds), 1), " % of time"));
    y += kRowHeight;
  }
  return out;
}

}  // namespace

std::string plot_energy(const std::string& title, const EnergyReport& report) {
  const EnergyPart& part = report.main_part();
  const auto rows = static_cast<double>(
      std::count_if(part.joules.begin(), part.joules.end(), [](double joules) { return joules > 0; }));
  const double bars_top = kAreaTop + kAreaHeight + 40;
  return svg::picture(kPlotWidth, bars_top + rows * kRowHeight + 15,
                      concat(svg::text(kPlotLeft, 20, "start", title),
                             svg::text(kPlotLeft, 38, "start",
                                       concat("power by phase, ", report.gpu ? "GPU" : "host",
                                              part.estimated ? " (estimated, not a reading)" : "")),
                             power_area(report), phase_bars(part, bars_top)));
}

}  // namespace moebius::cli
