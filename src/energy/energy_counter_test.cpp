#include "energy/energy_counter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "base/test_folder.h"
#include "energy/nvml_stand_in.h"

namespace moebius::energy {
namespace {

using ::testing::HasSubstr;

constexpr char kGpuAddress[] = "0000:3b:00.0";

class EnergyCounterTest : public ::testing::Test {
 protected:
  EnergyCounterTest() {
    sources_.nvml_library = built_or_named(MOEBIUS_NVML_STAND_IN);
    sources_.powercap = root_.path();
    sources_.clock = &clock_;
    sources_.background_seconds = 0;
  }

  // Appears at once, as the kernel's files do.
  void put(const std::string& domain, const std::string& file, const std::string& text) {
    std::filesystem::create_directories(root_ / domain);
    std::ofstream(root_ / (domain + "/next")) << text << '\n';
    std::filesystem::rename(root_ / (domain + "/next"), root_ / (domain + "/" + file));
  }
  void put_joules(const std::string& domain, int joules) {
    put(domain, "energy_uj", concat(joules, "000000"));
  }
  void put_domain(const std::string& domain, const std::string& name, int joules) {
    put(domain, "name", name);
    put(domain, "max_energy_range_uj", "65532610987");
    put_joules(domain, joules);
  }

  // Energy of the GPU after each further reading; -1 for absent. What was warned of is in `warnings_`.
  std::vector<double> follow(const std::string& recorded, int readings, double seconds_apart = 1) {
    settings_.set("ENERGY", recorded);
    EnergyCounter counter = EnergyCounter::open(kGpuAddress, sources_);
    std::vector<double> joules;
    ::testing::internal::CaptureStderr();
    for (int i = 0; i < readings; ++i) {
      clock_.advance(seconds_apart);
      joules.push_back(counter.joules_since_start().device_joules.value_or(-1));
    }
    warnings_ = ::testing::internal::GetCapturedStderr();
    return joules;
  }

  StandInSettings settings_;
  TestFolder root_;
  FixedClock clock_;
  EnergySources sources_;
  std::string warnings_;
};

TEST_F(EnergyCounterTest, counts_gpu_and_host_from_its_start) {
  settings_.set("ENERGY", "5000000 5700000 6300000");
  put_domain("intel-rapl:0", "package-0", 1000);
  put_domain("intel-rapl:1", "package-1", 2000);
  put_domain("intel-rapl:0:0", "core", 10);
  put_domain("intel-rapl:0:1", "dram", 500);
  EnergyCounter counter = EnergyCounter::open(kGpuAddress, sources_);
  EXPECT_EQ(counter.method(), "device: NVML total energy counter; host: RAPL dram + package-0 + package-1");
  put_joules("intel-rapl:0", 1100);
  put_joules("intel-rapl:1", 2200);
  put_joules("intel-rapl:0:0", 90);
  put_joules("intel-rapl:0:1", 530);
  clock_.advance(1);
  const auto first = counter.joules_since_start();
  EXPECT_EQ(first.device_joules, 700);
  EXPECT_EQ(first.host_joules, 330);
  put_joules("intel-rapl:0", 1200);
  clock_.advance(1);
  const auto second = counter.joules_since_start();
  EXPECT_EQ(second.device_joules, 1300);
  EXPECT_EQ(second.host_joules, 430);
}

TEST_F(EnergyCounterTest, has_nothing_where_there_is_no_counter) {
  sources_.nvml_library = "libnvidia-ml-that-is-not-there.so";
  ::testing::internal::CaptureStderr();
  EnergyCounter counter = EnergyCounter::open(kGpuAddress, sources_);
  clock_.advance(60);
  const auto reading = counter.joules_since_start();
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
  EXPECT_FALSE(reading.device_joules);
  EXPECT_FALSE(reading.host_joules);
  EXPECT_THAT(counter.method(), HasSubstr("device: none (no NVIDIA driver is installed"));
  EXPECT_THAT(counter.method(), HasSubstr("host: none (the kernel shows no RAPL counter"));
}

TEST_F(EnergyCounterTest, leaves_the_gpu_out_of_a_run_on_the_cpu) {
  put_domain("intel-rapl:0", "package-0", 1000);
  EnergyCounter counter = EnergyCounter::open(std::nullopt, sources_);
  put_joules("intel-rapl:0", 1010);
  const auto reading = counter.joules_since_start();
  EXPECT_FALSE(reading.device_joules);
  EXPECT_EQ(reading.host_joules, 10);
  EXPECT_EQ(counter.method(), "device: none (no GPU is used); host: RAPL package-0");
}

TEST_F(EnergyCounterTest, says_why_the_gpu_counter_cannot_be_used) {
  for (const auto& [recorded, reason] :
       {std::pair{"!3", "Not Supported"}, {"!4", "Insufficient Permissions"}}) {
    EXPECT_EQ(follow(recorded, 2), (std::vector<double>{-1, -1}));
    EXPECT_EQ(warnings_, "");
    EXPECT_THAT(EnergyCounter::open(kGpuAddress, sources_).method(),
                HasSubstr(concat("device: none (nvmlDeviceGetTotalEnergyConsumption: ", reason)));
  }
  EXPECT_THAT(EnergyCounter::open("0000:99:00.0", sources_).method(),
              HasSubstr("device: none (PCI address 0000:99:00.0: "));
}

TEST_F(EnergyCounterTest, tells_that_a_split_card_is_counted_whole) {
  settings_.set("MIG", "1");
  EXPECT_THAT(EnergyCounter::open(kGpuAddress, sources_).method(),
              HasSubstr("of the whole card, all its MIG instances"));
}

TEST_F(EnergyCounterTest, a_lost_gpu_ends_in_absent_and_one_warning) {
  EXPECT_EQ(follow("5000000 5700000 !15", 4), (std::vector<double>{700, -1, -1, -1}));
  EXPECT_EQ(warnings_,
            "warning: energy is left out of the results: NVML total energy counter: "
            "nvmlDeviceGetTotalEnergyConsumption: GPU is lost (status 15)\n");
}

TEST_F(EnergyCounterTest, a_single_failed_reading_costs_nothing_later) {
  EXPECT_EQ(follow("5000000 5700000 !10 6300000", 3), (std::vector<double>{700, -1, 1300}));
}

TEST_F(EnergyCounterTest, a_counter_reset_ends_in_absent_and_one_warning) {
  EXPECT_EQ(follow("5000000 5700000 20000 6900000", 4), (std::vector<double>{700, -1, -1, -1}));
  EXPECT_EQ(warnings_,
            "warning: energy is left out of the results: NVML total energy counter: the counter went "
            "backwards, from 5700 J to 20 J\n");
}

TEST_F(EnergyCounterTest, a_counter_that_stays_zero_ends_in_absent_and_one_warning) {
  EXPECT_EQ(follow("0", 4, 6), (std::vector<double>{-1, -1, -1, -1}));
  EXPECT_EQ(
      warnings_,
      "warning: energy is left out of the results: NVML total energy counter: the counter has stood at 0 J "
      "for 12 s\n");
}

TEST_F(EnergyCounterTest, unwraps_the_host_counters) {
  put_domain("intel-rapl:0", "package-0", 65'500);
  EnergyCounter counter = EnergyCounter::open(std::nullopt, sources_);
  put_joules("intel-rapl:0", 100);
  clock_.advance(2);
  EXPECT_NEAR(counter.joules_since_start().host_joules.value(), 65'532.610987 - 65'500 + 100, 1e-6);
}

TEST_F(EnergyCounterTest, one_package_that_disappears_leaves_no_part_of_the_sum) {
  put_domain("intel-rapl:0", "package-0", 1000);
  put_domain("intel-rapl:1", "package-1", 1000);
  EnergyCounter counter = EnergyCounter::open(std::nullopt, sources_);
  put_joules("intel-rapl:0", 1010);
  std::filesystem::remove_all(root_ / "intel-rapl:1");
  ::testing::internal::CaptureStderr();
  EXPECT_FALSE(counter.joules_since_start().host_joules);
  EXPECT_FALSE(counter.joules_since_start().host_joules);
  const std::string warnings = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(warnings, HasSubstr("RAPL package-0 + package-1: "));
  EXPECT_THAT(warnings, HasSubstr("intel-rapl:1/energy_uj: No such file or directory"));
  EXPECT_EQ(std::count(warnings.begin(), warnings.end(), '\n'), 1) << warnings;
}

TEST_F(EnergyCounterTest, watches_counters_that_wrap_in_the_background) {
  // A reset that the caller's own readings cannot see: the counter is beyond its start again at the end.
  put_domain("intel-rapl:0", "package-0", 30'000);
  sources_.clock = &system_clock();
  sources_.background_seconds = 0.001;
  ::testing::internal::CaptureStderr();
  {
    EnergyCounter counter = EnergyCounter::open(std::nullopt, sources_);
    put_joules("intel-rapl:0", 5);
    std::string seen;
    for (int i = 0; i < 2000 && seen.empty(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      std::fflush(stderr);
      seen = ::testing::internal::GetCapturedStderr();
      ::testing::internal::CaptureStderr();
    }
    EXPECT_THAT(seen, HasSubstr("RAPL package-0: the counter went backwards, from 30000 J to 5 J"));
    put_joules("intel-rapl:0", 30'010);
    EXPECT_FALSE(counter.joules_since_start().host_joules);
  }
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "");
}

}  // namespace
}  // namespace moebius::energy
