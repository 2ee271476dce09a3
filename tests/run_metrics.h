// What a run has written of its steps, and whether two runs trained alike.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/concat.h"

namespace moebius {

// The lines of metrics.jsonl.
inline std::vector<nlohmann::json> metrics_of(const std::filesystem::path& run) {
  std::vector<nlohmann::json> lines;
  std::ifstream file(run / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

// Each step's numbers within 1e-4, and the first step's choices of experts exactly.
inline void expect_same_training(const std::vector<nlohmann::json>& expected,
                                 const std::vector<nlohmann::json>& actual, size_t num_steps) {
  ASSERT_EQ(expected.size(), num_steps);
  ASSERT_EQ(actual.size(), num_steps);
  for (size_t i = 0; i < num_steps; ++i) {
    for (const char* number : {"loss", "balance_loss", "gradient_norm"}) {
      const double value = expected[i].at(number).get<double>();
      EXPECT_NEAR(actual[i].at(number).get<double>(), value, std::abs(value) * 1e-4 + 1e-7)
          << number << " of step " << i + 1;
    }
    for (const char* number : {"tokens", "targets", "learning_rate"})
      EXPECT_EQ(actual[i].at(number), expected[i].at(number)) << number << " of step " << i + 1;
  }
  for (size_t layer = 0; layer < expected[0]["layers"].size(); ++layer)
    EXPECT_EQ(actual[0]["layers"][layer]["load"], expected[0]["layers"][layer]["load"]);
  EXPECT_NEAR(actual.back()["validation_loss"].get<double>(),
              expected.back()["validation_loss"].get<double>(), 1e-4);
}

}  // namespace moebius
