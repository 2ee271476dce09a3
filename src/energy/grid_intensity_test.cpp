#include "energy/grid_intensity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::energy {
namespace {

using ::testing::HasSubstr;

std::string refusal(const GridOptions& options, double start = 0) {
  try {
    const GridIntensity grid(options, start);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(GridIntensity, is_unknown_by_default) {
  const GridIntensity grid;
  EXPECT_FALSE(grid);
  EXPECT_FALSE(grid.at(0));
}

TEST(GridIntensity, a_constant_names_what_it_is) {
  const GridIntensity grid({.constant_g_per_kwh = 380, .scope = "direct", .source = "utility, 2025"}, 0);
  EXPECT_EQ(grid.at(1e6), 380);
  EXPECT_EQ(grid.description(), "constant 380 g/kWh, direct average, utility, 2025");
}

class GridTrace : public ::testing::Test {
 protected:
  GridTrace() {
    write_file_atomic(file_,
                      "utc_iso8601,lifecycle_g_per_kwh,direct_g_per_kwh\n"
                      "2022-06-01T00:00:00Z,100,80\n2022-06-01T01:00:00Z,200,150\n");
  }
  TestFolder folder_;
  std::filesystem::path file_ = folder_ / "DE.csv";
};

TEST_F(GridTrace, is_replayed_and_ends) {
  const GridIntensity grid({.trace = file_, .replay_from = "2022-06-01T00:30:00Z"}, 1.8e9);
  EXPECT_EQ(grid.at(0), 100);
  EXPECT_EQ(grid.at(1801), 200);
  EXPECT_FALSE(grid.at(5401));
  EXPECT_EQ(grid.zone(), "DE");
  EXPECT_EQ(grid.description(),
            "recorded trace of DE (DE.csv), lifecycle average, replayed from 2022-06-01T00:30:00Z");
}

TEST_F(GridTrace, that_does_not_hold_the_start_is_refused_with_a_way_out) {
  const std::string text = refusal({.trace = file_}, 1.8e9);
  EXPECT_THAT(text,
              HasSubstr("runs from 2022-06-01T00:00:00Z to 2022-06-01T02:00:00Z and does not hold 2027"));
  EXPECT_THAT(text, HasSubstr("energy.grid_from = \"2022-06-01T00:00:00Z\""));
}

TEST_F(GridTrace, wrong_settings_are_refused) {
  EXPECT_THAT(refusal({.trace = file_, .replay_from = "yesterday"}),
              HasSubstr("energy.grid_from is 'yesterday', not a time like"));
  EXPECT_THAT(refusal({.constant_g_per_kwh = 5, .trace = file_}), HasSubstr("name one of them"));
}

}  // namespace
}  // namespace moebius::energy
