#include "cli/length_plot.h"

#include <algorithm>
#include <cstdio>

#include "base/concat.h"

namespace moebius::cli {
namespace {

constexpr int kWidth = 760, kLeft = 150, kRight = 110, kTop = 60, kPlotHeight = 220, kBarHeight = 22;
constexpr const char *kDocuments = "#4878a8", *kTokens = "#d98032", *kText = "#333333";

std::string number(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  }
  return out;
}

std::string rect(double x, double y, double width, double height, const char* colour) {
  return concat("<rect x=\"", number(x, 1), "\" y=\"", number(y, 1), "\" width=\"", number(width, 1),
                "\" height=\"", number(height, 1), "\" fill=\"", colour, "\"/>\n");
}

std::string label(double x, double y, const char* anchor, const std::string& text) {
  return concat("<text x=\"", number(x, 1), "\" y=\"", number(y, 1), "\" text-anchor=\"", anchor, "\">",
                escaped(text), "</text>\n");
}

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
  std::string out = label(kLeft - 10, kTop + 4, "end", number(100 * highest, 0) + " %") +
                    label(kLeft - 10, bottom, "end", "0");
  for (size_t i = 0; i < summary.classes.size(); ++i) {
    const auto& each = summary.classes[i];
    const double x = kLeft + slot * static_cast<double>(i);
    const double by_documents = kPlotHeight * share(each.documents, documents) / highest;
    const double by_tokens = kPlotHeight * share(each.tokens, summary.tokens) / highest;
    out += rect(x + 0.1 * slot, bottom - by_documents, 0.4 * slot, by_documents, kDocuments);
    out += rect(x + 0.5 * slot, bottom - by_tokens, 0.4 * slot, by_tokens, kTokens);
    out += label(x, bottom + 16, "middle", binary(each.from));
  }
  return out + label(kWidth - kRight, bottom + 16, "start", "tokens");
}

std::string bars(const std::vector<PolicyResult>& policies, double top) {
  std::string out = label(kLeft, top - 8, "start", "token efficiency") +
                    label(kWidth - 10, top - 8, "end", "cost max/mean");
  for (size_t i = 0; i < policies.size(); ++i) {
    const double y = top + kBarHeight * static_cast<double>(i);
    const double width = (kWidth - kLeft - kRight) * policies[i].token_efficiency;
    out += label(kLeft - 10, y + 15, "end", policies[i].policy);
    out += rect(kLeft, y + 3, width, kBarHeight - 6, kTokens);
    out += label(kLeft + width + 5, y + 15, "start", number(policies[i].token_efficiency, 3));
    out += label(kWidth - 10, y + 15, "end", number(policies[i].imbalance_cost, 3));
  }
  return out;
}

}  // namespace

std::string plot_lengths(const std::string& title, const data::LengthSummary& summary,
                         const std::vector<PolicyResult>& policies) {
  const double top_of_bars = kTop + kPlotHeight + 70;
  const double height = top_of_bars + kBarHeight * static_cast<double>(policies.size()) + 20;
  return concat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", kWidth, "\" height=\"",
                number(height, 0), "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"", kText, "\">\n",
                "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n", label(kLeft, 22, "start", title),
                rect(kLeft, 34, 10, 10, kDocuments), label(kLeft + 15, 43, "start", "share of documents"),
                rect(kLeft + 150, 34, 10, 10, kTokens), label(kLeft + 165, 43, "start", "share of tokens"),
                histogram(summary), bars(policies, top_of_bars), "</svg>\n");
}

}  // namespace moebius::cli
