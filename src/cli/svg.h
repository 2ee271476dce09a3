// The few elements that the plots of commands are made of. Lengths in pixels, text in UTF-8.
#pragma once

#include <string>

namespace moebius::cli::svg {

std::string number(double value, int decimals);

// `anchor`: start, middle or end; what the text's x is of it.
std::string text(double x, double y, const char* anchor, const std::string& text);
std::string rect(double x, double y, double width, double height, const char* colour, int decimals = 1);

// A whole picture of these on white.
std::string picture(double width, double height, const std::string& elements);

}  // namespace moebius::cli::svg
