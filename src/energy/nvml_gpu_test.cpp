// The real NVML of a machine with an NVIDIA driver; skipped elsewhere. Only reads.
#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <thread>

#include "energy/energy_counter.h"
#include "energy/nvml.h"

namespace moebius::energy {
namespace {

class RealNvml : public ::testing::Test {
 protected:
  void SetUp() override {
    auto nvml = Nvml::open();
    if (!nvml || nvml->num_devices().value_or(0) == 0) GTEST_SKIP() << "no NVIDIA GPU";
    nvml_.emplace(std::move(nvml).value());
    device_.emplace(nvml_->device(0).value());
  }
  std::optional<Nvml> nvml_;
  std::optional<NvmlDevice> device_;
};

TEST_F(RealNvml, a_pci_address_leads_to_its_device) {
  const std::string address = device_->pci_bus_id().value();
  EXPECT_EQ(nvml_->device_at(address).value().uuid().value(), device_->uuid().value());
  EXPECT_EQ(device_->uuid().value().rfind("GPU-", 0), 0u) << device_->uuid().value();
  // CUDA writes four digits of the domain, NVML eight.
  EXPECT_EQ(nvml_->device_at(address.substr(4)).value().uuid().value(), device_->uuid().value());
}

TEST_F(RealNvml, readings_are_those_of_a_gpu) {
  EXPECT_GE(device_->compute_capability().value().major, 5);
  EXPECT_GT(device_->memory().value().total_bytes, int64_t{1} << 30);
  EXPECT_GT(device_->average_power().value().watts, 1);
  EXPECT_LT(device_->average_power().value().watts, 5000);
  EXPECT_GT(device_->clock_mhz(ClockDomain::kSm).value(), 50);
  EXPECT_GT(device_->clock_mhz(ClockDomain::kMemory).value(), 50);
  EXPECT_GT(device_->temperature_celsius().value(), 0);
  EXPECT_LT(device_->temperature_celsius().value(), 120);
  EXPECT_LE(device_->utilisation().value().gpu, 1);
  for (const std::string& name : clock_event_names(device_->clock_event_reasons().value()))
    EXPECT_EQ(name.rfind("reason_", 0), std::string::npos) << name;
}

TEST_F(RealNvml, the_energy_counter_agrees_with_the_power) {
  if (!device_->total_energy_joules()) GTEST_SKIP() << device_->total_energy_joules().error().message;
  EnergyCounter counter = EnergyCounter::open(device_->pci_bus_id().value());
  std::this_thread::sleep_for(std::chrono::seconds(3));
  const auto joules = counter.joules_since_start().device_joules;
  ASSERT_TRUE(joules) << counter.method();
  // Wide, since the GPU is not ours alone and power is sampled.
  EXPECT_GT(*joules, 3 * device_->average_power().value().watts / 4);
  EXPECT_LT(*joules, 3 * device_->average_power().value().watts * 4);
}

}  // namespace
}  // namespace moebius::energy
