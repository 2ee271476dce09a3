#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/concat.h"
#include "base/units.h"
#include "cli/energy_report.h"

namespace moebius::cli {
namespace {

constexpr double kPlotWidth = 820, kPlotLeft = 70, kPlotRight = 20, kAreaTop = 50, kAreaHeight = 240;
constexpr double kRowHeight = 22, kNameWidth = 90;
constexpr std::array<const char*, energy::kNumPhases> kPhaseColours = {
    "#4878a8", "#d98032", "#8a5fa8", "#4f9d5b", "#c7b42c", "#7a5c45", "#d0648a", "#b0b0b0"};

std::string decimal(double value, int decimals = 1) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string xml(const std::string& text) {
  std::string out;
  for (const char c : text)
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return out;
}

std::string words(double x, double y, const char* anchor, const std::string& text) {
  return concat("<text x=\"", decimal(x), "\" y=\"", decimal(y), "\" text-anchor=\"", anchor, "\">",
                xml(text), "</text>\n");
}

std::string box(double x, double y, double width, double height, const char* colour) {
  return concat("<rect x=\"", decimal(x, 2), "\" y=\"", decimal(y, 2), "\" width=\"", decimal(width, 2),
                "\" height=\"", decimal(height, 2), "\" fill=\"", colour, "\"/>\n");
}

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
      out += box(x, y, across, height, kPhaseColours[i]);
    }
  }
  out += words(kPlotLeft - 8, kAreaTop + 10, "end", concat(decimal(highest, highest < 10 ? 1 : 0), " W"));
  out += words(kPlotLeft - 8, bottom, "end", "0");
  out += words(kPlotLeft, bottom + 16, "start", "0 s");
  return out + words(kPlotWidth - kPlotRight, bottom + 16, "end", format_duration(length));
}

std::string phase_bars(const EnergyPart& part, double top) {
  double highest = 1e-9;
  for (const double joules : part.joules) highest = std::max(highest, joules);
  std::string out;
  double y = top;
  for (size_t i = 0; i < energy::kNumPhases; ++i) {
    if (part.joules[i] <= 0) continue;
    const double width = (kPlotWidth - kNameWidth - 260) * part.joules[i] / highest;
    out += words(kNameWidth - 8, y + 15, "end", energy::kPhaseNames[i]);
    out += box(kNameWidth, y + 3, width, kRowHeight - 6, kPhaseColours[i]);
    out += words(kNameWidth + width + 6, y + 15, "start",
                 concat(decimal(part.joules[i], part.joules[i] < 100 ? 2 : 0), " J, ",
                        decimal(100 * part.joules[i] / part.total_joules), " % of energy, ",
                        decimal(100 * part.seconds[i] / energy::sum_of(part.seconds)), " % of time"));
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
  return concat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", decimal(kPlotWidth, 0), "\" height=\"",
                decimal(bars_top + rows * kRowHeight + 15, 0),
                "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333333\">\n",
                "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
                words(kPlotLeft, 20, "start", title),
                words(kPlotLeft, 38, "start",
                      concat("power by phase, ", report.gpu ? "GPU" : "host",
                             part.estimated ? " (estimated, not a reading)" : "")),
                power_area(report), phase_bars(part, bars_top), "</svg>\n");
}

}  // namespace moebius::cli
