#include "cli/nvml_probe.h"

#include <gtest/gtest.h>

#include "energy/nvml_stand_in.h"

namespace moebius::cli {
namespace {

std::string stand_in() {
  return energy::built_or_named(MOEBIUS_NVML_STAND_IN);
}

class NvmlProbeTest : public ::testing::Test {
 protected:
  energy::StandInSettings settings_;
};

TEST_F(NvmlProbeTest, reads_every_gpu) {
  settings_.set("GPUS", "2");
  const NvmlProbe probe = probe_nvml(stand_in());
  EXPECT_EQ(probe.why, "");
  EXPECT_EQ(probe.driver_version, "580.95.05");
  EXPECT_EQ(probe.cuda_version, 13000);
  ASSERT_EQ(probe.gpus.size(), 2u);
  EXPECT_EQ(probe.gpus[1].name, "Stand-in GPU");
  EXPECT_EQ(probe.gpus[1].compute_major, 9);
  EXPECT_EQ(probe.gpus[1].total_memory_bytes, int64_t{80} << 30);
  EXPECT_EQ(probe.gpus[1].total_energy_joules, 5.0);
}

TEST_F(NvmlProbeTest, leaves_out_what_the_library_lacks) {
  // The stand-in has no nvmlDeviceGetEnforcedPowerLimit.
  const NvmlProbe probe = probe_nvml(stand_in());
  ASSERT_EQ(probe.gpus.size(), 1u);
  EXPECT_FALSE(probe.gpus[0].power_limit_watts.has_value());
}

TEST_F(NvmlProbeTest, says_that_no_driver_is_installed) {
  const NvmlProbe probe = probe_nvml("libnvidia-ml-that-is-not-there.so");
  EXPECT_TRUE(probe.gpus.empty());
  EXPECT_NE(probe.why.find("no NVIDIA driver is installed"), std::string::npos);
  EXPECT_NE(probe.why.find("580 or newer"), std::string::npos);
}

TEST_F(NvmlProbeTest, says_that_the_driver_is_not_loaded) {
  settings_.set("STATUS", "9");
  EXPECT_NE(probe_nvml(stand_in()).why.find("modprobe nvidia"), std::string::npos);
}

TEST_F(NvmlProbeTest, says_that_driver_and_libraries_differ) {
  settings_.set("STATUS", "18");
  EXPECT_NE(probe_nvml(stand_in()).why.find("reboot"), std::string::npos);
}

TEST_F(NvmlProbeTest, says_that_no_gpu_is_visible) {
  settings_.set("GPUS", "0");
  const NvmlProbe probe = probe_nvml(stand_in());
  EXPECT_EQ(probe.driver_version, "580.95.05");
  EXPECT_NE(probe.why.find("shows no GPU"), std::string::npos);
}

}  // namespace
}  // namespace moebius::cli
