#include "cli/svg.h"

#include <cstdio>

#include "base/concat.h"

namespace moebius::cli::svg {
namespace {

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text)
    out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
  return out;
}

}  // namespace

std::string number(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

std::string text(double x, double y, const char* anchor, const std::string& text) {
  return concat("<text x=\"", number(x, 1), "\" y=\"", number(y, 1), "\" text-anchor=\"", anchor, "\">",
                escaped(text), "</text>\n");
}

std::string rect(double x, double y, double width, double height, const char* colour, int decimals) {
  return concat("<rect x=\"", number(x, decimals), "\" y=\"", number(y, decimals), "\" width=\"",
                number(width, decimals), "\" height=\"", number(height, decimals), "\" fill=\"", colour,
                "\"/>\n");
}

std::string picture(double width, double height, const std::string& elements) {
  return concat("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"", number(width, 0), "\" height=\"",
                number(height, 0),
                "\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#333333\">\n"
                "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
                elements, "</svg>\n");
}

}  // namespace moebius::cli::svg
