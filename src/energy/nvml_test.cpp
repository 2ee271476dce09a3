#include "energy/nvml.h"

#include <gtest/gtest.h>

#include "energy/nvml_stand_in.h"

namespace moebius::energy {
namespace {

std::string stand_in() {
  return built_or_named(MOEBIUS_NVML_STAND_IN);
}
std::string old_stand_in() {
  return built_or_named(MOEBIUS_OLD_NVML_STAND_IN);
}

TEST(Nvml, reads_a_device) {
  const Nvml nvml = Nvml::open(stand_in()).value();
  EXPECT_EQ(nvml.driver_version().value(), "580.95.05");
  EXPECT_EQ(nvml.cuda_version().value(), 13000);
  EXPECT_EQ(nvml.num_devices().value(), 1);
  const NvmlDevice device = nvml.device(0).value();
  EXPECT_EQ(device.name().value(), "Stand-in GPU");
  EXPECT_EQ(device.uuid().value(), "GPU-00000000-0000-0000-0000-000000000000");
  EXPECT_EQ(device.pci_bus_id().value(), "00000000:3B:00.0");
  EXPECT_EQ(device.compute_capability().value().major, 9);
  EXPECT_EQ(device.memory().value().total_bytes, int64_t{80} << 30);
  EXPECT_EQ(device.memory().value().free_bytes, int64_t{79} << 30);
  EXPECT_EQ(device.total_energy_joules().value(), 5.0);
  EXPECT_EQ(device.clock_mhz(ClockDomain::kGraphics).value(), 1975);
  EXPECT_EQ(device.clock_mhz(ClockDomain::kSm).value(), 1980);
  EXPECT_EQ(device.clock_mhz(ClockDomain::kMemory).value(), 2619);
  EXPECT_EQ(device.temperature_celsius().value(), 64);
  EXPECT_EQ(device.utilisation().value().gpu, 0.98);
  EXPECT_EQ(device.utilisation().value().memory, 0.4);
  EXPECT_FALSE(device.mig_enabled().value());
}

TEST(Nvml, names_clock_events) {
  const NvmlDevice device = Nvml::open(stand_in()).value().device(0).value();
  EXPECT_EQ(clock_event_names(device.clock_event_reasons().value()),
            (std::vector<std::string>{"sw_power_cap", "sw_thermal_slowdown", "reason_12"}));
  EXPECT_TRUE(clock_event_names(0).empty());
}

TEST(Nvml, tells_instant_from_average_power_and_what_they_cover) {
  StandInSettings settings;
  const NvmlDevice device = Nvml::open(stand_in()).value().device(0).value();
  EXPECT_EQ(device.instant_power().value().watts, 655.5);
  EXPECT_EQ(device.average_power().value().watts, 642);
  EXPECT_EQ(device.average_power().value().scope, PowerScope::kGpu);
  settings.set("POWER_SCOPE", "module");
  EXPECT_EQ(device.instant_power().value().watts, 655.5);
  EXPECT_STREQ(power_scope_name(device.instant_power().value().scope), "module");
}

TEST(Nvml, falls_back_on_what_older_drivers_have) {
  const NvmlDevice device = Nvml::open(old_stand_in()).value().device(0).value();
  EXPECT_EQ(device.temperature_celsius().value(), 41);
  EXPECT_EQ(clock_event_names(device.clock_event_reasons().value()), std::vector<std::string>{"gpu_idle"});
  EXPECT_EQ(device.average_power().value().watts, 310);
  EXPECT_FALSE(device.mig_enabled().value());
  const auto instant = device.instant_power();
  ASSERT_FALSE(instant);
  EXPECT_EQ(instant.error().kind, ErrorKind::kUnsupported);
  EXPECT_EQ(instant.error().message, "nvmlDeviceGetFieldValues: this driver's NVML does not have it");
}

TEST(Nvml, finds_the_device_of_a_pci_address) {
  StandInSettings settings;
  settings.set("GPUS", "3");
  const Nvml nvml = Nvml::open(stand_in()).value();
  EXPECT_EQ(nvml.device_at("0000:3d:00.0").value().uuid().value(),
            "GPU-00000000-0000-0000-0000-000000000002");
  const auto missing = nvml.device_at("0000:01:00.0");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().kind, ErrorKind::kNotFound);
  EXPECT_EQ(missing.error().message,
            "PCI address 0000:01:00.0: nvmlDeviceGetHandleByPciBusId_v2: Not Found (status 6)");
}

TEST(Nvml, a_device_outlives_the_object_that_gave_it) {
  auto nvml = std::make_unique<Nvml>(Nvml::open(stand_in()).value());
  const NvmlDevice device = nvml->device(0).value();
  nvml.reset();
  EXPECT_EQ(device.total_energy_joules().value(), 5.0);
}

TEST(Nvml, tells_refused_lost_and_unsupported_apart) {
  StandInSettings settings;
  const NvmlDevice device = Nvml::open(stand_in()).value().device(0).value();
  const std::pair<const char*, ErrorKind> kinds[] = {{"3", ErrorKind::kUnsupported},
                                                     {"4", ErrorKind::kPermission},
                                                     {"15", ErrorKind::kUnavailable},
                                                     {"999", ErrorKind::kOther}};
  for (const auto& [status, kind] : kinds) {
    settings.set("QUERY_STATUS", status);
    EXPECT_EQ(device.utilisation().error().kind, kind) << status;
    EXPECT_EQ(device.temperature_celsius().error().kind, kind) << status;
    EXPECT_EQ(device.clock_mhz(ClockDomain::kSm).error().kind, kind) << status;
    EXPECT_EQ(device.clock_event_reasons().error().kind, kind) << status;
    EXPECT_EQ(device.instant_power().error().kind, kind) << status;
    EXPECT_EQ(device.uuid().error().kind, kind) << status;
  }
  settings.set("QUERY_STATUS", "4");
  EXPECT_EQ(device.utilisation().error().message,
            "nvmlDeviceGetUtilizationRates: Insufficient Permissions (status 4)");
}

TEST(Nvml, says_what_is_missing_and_the_way_out) {
  StandInSettings settings;
  const auto none = Nvml::open("libnvidia-ml-that-is-not-there.so");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().kind, ErrorKind::kNotFound);
  EXPECT_NE(none.error().message.find("install the driver, version 580 or newer"), std::string::npos);
  settings.set("STATUS", "9");
  EXPECT_NE(Nvml::open(stand_in()).error().message.find("modprobe nvidia"), std::string::npos);
  settings.set("STATUS", "18");
  EXPECT_NE(Nvml::open(stand_in()).error().message.find("reboot"), std::string::npos);
  settings.set("STATUS", "4");
  EXPECT_EQ(Nvml::open(stand_in()).error().kind, ErrorKind::kPermission);
}

}  // namespace
}  // namespace moebius::energy
