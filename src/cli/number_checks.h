// Checks of numbers on the command line that say what is wrong in a line.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "base/concat.h"

namespace moebius::cli {

// Whether the number of a text is above 0, or not below it; empty when it is, else what to say.
inline std::string fault_of_number(const std::string& text, bool may_be_zero) {
  double number = 0;
  if (!CLI::detail::lexical_cast(text, number)) return concat(text, " is not a number");
  if (number > 0 || (may_be_zero && number == 0)) return {};
  return concat(text, " is too small; ", may_be_zero ? "0 or more is allowed" : "it must be above 0");
}

inline CLI::Validator above_zero() {
  return {[](std::string& text) { return fault_of_number(text, false); }, "POSITIVE"};
}
inline CLI::Validator zero_or_more() {
  return {[](std::string& text) { return fault_of_number(text, true); }, "NONNEGATIVE"};
}

}  // namespace moebius::cli
