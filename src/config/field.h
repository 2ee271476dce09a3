// How a config struct describes itself. Each struct has one function `describe(visitor, struct)` that names
// every field once; loading, overriding, validating, dumping and the documentation all walk that description.
//
//   template <class V> void describe(V& v, ModelConfig& c) {
//     v.field("layers", c.layers, range(1, 1000), "", "Number of decoder blocks.");
//   }
//
// Arguments of field: the key, the value, the allowed range or choices, the unit ("" when it has none) and
// one sentence of meaning. Nested structs: v.section("moe", c.moe, "what the section is about").
#pragma once

#include <limits>
#include <string>
#include <vector>

namespace moebius::config {

// Inclusive numeric bounds.
struct Range {
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
};
inline Range range(double min, double max) {
  return {min, max};
}
inline Range at_least(double min) {
  return {min, std::numeric_limits<double>::max()};
}
inline Range any() {
  return {};
}

// Allowed strings of a text field.
struct Choices {
  std::vector<std::string> values;
};
inline Choices one_of(std::vector<std::string> values) {
  return {std::move(values)};
}

}  // namespace moebius::config
