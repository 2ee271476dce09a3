#include "cli/length_plot.h"

#include <algorithm>

#include "base/concat.h"
#include "cli/svg.h"

namespace moebius::cli {
namespace {

constexpr int kWidth = 760, kLeft = 150, kRight = 110, kTop = 60, kPlotHeight = 220, kBarHeight = 22;
constexpr const char *kDocuments = "#4878a8", *kTokens = "#d98032";

// Powers of two, short: "512", "4Ki", "2Mi".
std::string binary(int64_t value) {
  static constexpr const char* kSuffix[] = {"", "Ki", "Mi", "Gi", "Ti"};
  int suffix = 0;
  for (; value >= 1024 && suffix < 4; value /= 1024) ++suffix;
  return std::to_string(value) + kSuffix[suffix];
}

double share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::string histogram(const data::LengthSummary& summary) {
  const int64_t documents = summary.documents - summary.empty_documents;
  double highest = 0.01;
  for (const auto& each : summary.classes) {
    highest = std::max({highest, share(each.documents, documents), share(each.tokens, summary.tokens)});
  }
  const double bottom = kTop + kPlotHeight;
  const double slot = static_cast<double>(kWidth - kLeft - kRight) /
                      static_cast<double>(std::max<size_t>(summary.classes.size(), 1));
  std::string out = svg::text(kLeft - 10, kTop + 4, "end", svg::number(100 * highest, 0) + " %") +
                    svg::text(kLeft - 10, bottom, "end", "0");
  for (size_t i = 0; i < summary.classes.size(); ++i) {
    const auto& each = summary.classes[i];
    const double x = kLeft + slot * static_cast<double>(i);
    const double by_documents = kPlotHeight * share(each.documents, documents) / highest;
    const double by_tokens = kPlotHeight * share(each.tokens, summary.tokens) / highest;
    out += svg::rect(x + 0.1 * slot, bottom - by_documents, 0.4 * slot, by_documents, kDocuments);
    out += svg::rect(x + 0.5 * slot, bottom - by_tokens, 0.4 * slot, by_tokens, kTokens);
    out += svg::text(x, bottom + 16, "middle", binary(each.from));
  }
  return out + svg::text(kWidth - kRight, bottom + 16, "start", "tokens");
}

std::string bars(const std::vector<PolicyResult>& policies, double top) {
  std::string out = svg::text(kLeft, top - 8, "start", "token efficiency") +
                    svg::text(kWidth - 10, top - 8, "end", "cost max/mean");
  for (size_t i = 0; i < policies.size(); ++i) {
    const double y = top + kBarHeight * static_cast<double>(i);
    const double width = (kWidth - kLeft - kRight) * policies[i].token_efficiency;
    out += svg::text(kLeft - 10, y + 15, "end", policies[i].policy);
    out += svg::rect(kLeft, y + 3, width, kBarHeight - 6, kTokens);
    out += svg::text(kLeft + width + 5, y + 15, "start", svg::number(policies[i].token_efficiency, 3));
    out += svg::text(kWidth - 10, y + 15, "end", svg::number(policies[i].imbalance_cost, 3));
  }
  return out;
}

}  // namespace

std::string plot_lengths(const std::string& title, const data::LengthSummary& summary,
                         const std::vector<PolicyResult>& policies) {
  const double top_of_bars = kTop + kPlotHeight + 70;
  const double height = top_of_bars + kBarHeight * static_cast<double>(policies.size()) + 20;
  return svg::picture(kWidth, height,
                      concat(svg::text(kLeft, 22, "start", title), svg::rect(kLeft, 34, 10, 10, kDocuments),
                             svg::text(kLeft + 15, 43, "start", "share of documents"),
                             svg::rect(kLeft + 150, 34, 10, 10, kTokens),
                             svg::text(kLeft + 165, 43, "start", "share of tokens"), histogram(summary),
                             bars(policies, top_of_bars)));
}

}  // namespace moebius::cli
