#include "energy/carbon/trace.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <string>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"

namespace moebius::energy::carbon {
namespace {

const std::string kHeader = "utc_iso8601,lifecycle_g_per_kwh,direct_g_per_kwh,estimated\n";

class CarbonTrace : public testing::Test {
 protected:
  std::filesystem::path file(const std::string& text) {
    write_file_atomic(folder / "XX-TEST.csv", text);
    return folder / "XX-TEST.csv";
  }
  std::string error_of(const std::string& rows) {
    const auto path = file(kHeader + rows);
    const std::string error = message_of<UserError>([&] { read_trace(path); });
    const std::string name = "carbon trace " + path.string();
    return error.rfind(name, 0) == 0 ? error.substr(name.size()) : error;
  }
  TestFolder folder;
};

TEST_F(CarbonTrace, reads_plain_and_compressed_files) {
  const std::string text = kHeader +
                           "2030-12-31T23:00:00Z,100.5,80,0\n"
                           "2031-01-01T00:00:00Z,200,180,1\n"
                           "2031-01-01T01:00:00Z,300,280,1\n";
  const Trace plain = read_trace(file(text));
  EXPECT_EQ(plain.zone, "XX-TEST");
  EXPECT_EQ(plain.signal, "lifecycle average");
  EXPECT_EQ(plain.step_s, 3600);
  EXPECT_EQ(plain.values, (std::vector<double>{100.5, 200, 300}));
  EXPECT_EQ(plain.estimated_steps, 2);
  EXPECT_EQ(plain.index_of_year(2031), 1);
  EXPECT_EQ(plain.first_day(), "2030-12-31");
  EXPECT_EQ(plain.last_day(), "2031-01-01");
  EXPECT_EQ(message_of<UserError>([&] { plain.index_of_year(2032); }),
            "year 2032 does not begin in the carbon trace of XX-TEST, which runs from 2030-12-31 to "
            "2031-01-01; choose "
            "another --year or another file");
  EXPECT_NE(message_of<UserError>([&] { plain.index_of_year(2030); }), "");

  const auto zipped = folder / "YY.csv.gz";
  gzFile out = gzopen(zipped.c_str(), "wb");
  gzwrite(out, text.data(), text.size());
  gzclose(out);
  const Trace direct = read_trace(zipped, {.scope = Scope::kDirect});
  EXPECT_EQ(direct.zone, "YY");
  EXPECT_EQ(direct.signal, "direct average");
  EXPECT_EQ(direct.values, (std::vector<double>{80, 180, 280}));
}

TEST_F(CarbonTrace, reads_half_hours_without_a_zone) {
  const Trace trace =
      read_trace(file("time_as_recorded,g_per_kwh\n2020-02-29T23:30:00,1.25\n2020-03-01T00:00:00,2\n"));
  EXPECT_EQ(trace.step_s, 1800);
  EXPECT_EQ(trace.signal, "as recorded");
  EXPECT_EQ(trace.values, (std::vector<double>{1.25, 2}));
}

TEST_F(CarbonTrace, names_what_is_wrong) {
  const std::string first = "2031-01-01T00:00:00Z,100,80,0\n2031-01-01T01:00:00Z,100,80,0\n";
  EXPECT_EQ(error_of("2031-01-01 00:00,1,1,0\n"),
            ", line 2, utc_iso8601: '2031-01-01 00:00' is not a time like 2021-01-01T00:00:00Z");
  EXPECT_EQ(error_of("2031-02-29T00:00:00Z,1,1,0\n"),
            ", line 2, utc_iso8601: '2031-02-29T00:00:00Z' is not a time like 2021-01-01T00:00:00Z");
  EXPECT_EQ(error_of(first + "2031-01-01T02:00:00Z,,80,0\n"),
            ", line 4, lifecycle_g_per_kwh: '' is empty; give a number or remove the row");
  EXPECT_EQ(error_of(first + "2031-01-01T02:00:00Z,0,80,0\n"),
            ", line 4, lifecycle_g_per_kwh: '0' is not in [0.001, 5000]");
  EXPECT_EQ(error_of(first + "2031-01-01T02:00:00Z,1,80,2\n"), ", line 4, estimated: '2' is not in [0, 1]");
  EXPECT_EQ(error_of(first + "2031-01-01T01:00:00Z,1,80,0\n"),
            ", line 4, utc_iso8601: '2031-01-01T01:00:00Z' repeats the time of the row above it, "
            "2031-01-01T01:00:00Z; sort "
            "the rows and keep one per step");
  EXPECT_EQ(error_of(first + "2031-01-01T00:00:00Z,1,80,0\n"),
            ", line 4, utc_iso8601: '2031-01-01T00:00:00Z' comes before the time of the row above it, "
            "2031-01-01T01:00:00Z; sort the rows and keep one per step");
  EXPECT_EQ(error_of(first + "2031-01-01T04:00:00Z,1,80,0\n"),
            ", line 4, utc_iso8601: '2031-01-01T04:00:00Z' comes after a gap of 2 steps behind "
            "2031-01-01T01:00:00Z; add "
            "the missing rows, or allow filling (--fill-gaps 2)");
  EXPECT_EQ(error_of(first + "2031-01-01T02:30:00Z,1,80,0\n"),
            ", line 4, utc_iso8601: '2031-01-01T02:30:00Z' is 5400 s after the row above it, in a trace with "
            "steps of 3600 s");
  EXPECT_EQ(error_of("2031-01-01T00:00:00Z,1,1,0\n2031-01-01T02:00:00Z,1,1,0\n"),
            ", line 3, utc_iso8601: '2031-01-01T02:00:00Z' is 7200 s after the row above it; steps of 300, "
            "900, 1800 or 3600 "
            "s are read");
  EXPECT_EQ(error_of("2031-01-01T00:00:00Z,1,1,0\n"),
            ": holds 1 values; two at least are needed to know the length of a step");
  EXPECT_EQ(
      message_of<UserError>([&] { read_trace(file("utc_iso8601,direct_g_per_kwh\n")); }),
      "carbon trace " + (folder / "XX-TEST.csv").string() +
          ", line 1: there is no column 'lifecycle_g_per_kwh' among 'utc_iso8601', 'direct_g_per_kwh'; is it "
          "'direct_g_per_kwh'?");
}

TEST_F(CarbonTrace, fills_short_gaps_when_asked) {
  const auto path = file(kHeader +
                         "2031-01-01T00:00:00Z,100,80,0\n2031-01-01T01:00:00Z,100,80,0\n"
                         "2031-01-01T04:00:00Z,400,80,0\n");
  const Trace trace = read_trace(path, {.max_gap_steps = 2});
  EXPECT_EQ(trace.values, (std::vector<double>{100, 100, 200, 300, 400}));
  EXPECT_EQ(trace.filled_steps, 2);
  EXPECT_NE(message_of<UserError>([&] { read_trace(path, {.max_gap_steps = 1}); }), "");
}

}  // namespace
}  // namespace moebius::energy::carbon
