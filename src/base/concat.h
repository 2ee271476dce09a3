// Builds one string from values of any streamable type: concat("top_k (", 9, ") > experts (", 8, ")").
#pragma once

#include <sstream>
#include <string>

namespace moebius {

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace moebius
