#include "cli/doctor_report.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace moebius::cli {
namespace {

// A machine where nothing is missing.
DoctorReport healthy() {
  DoctorReport report;
  report.moebius_version = "0.1.0";
  report.system = {"Example Linux 7", "Linux 6.1 x86_64"};
  report.cpu.model = "Test CPU";
  report.cpu.sockets = 1;
  report.cpu.cores = 8;
  report.cpu.threads = report.cpu.usable_threads = 16;
  report.cpu.instruction_sets = {{"avx2", true}, {"avx512_bf16", true}, {"amx_bf16", false}};
  report.memory_total_bytes = report.memory_available_bytes = int64_t{64} << 30;
  report.disk_path = "/data";
  report.disk_free_bytes = int64_t{500} << 30;
  report.nvml.driver_version = "580.95.05";
  report.nvml.cuda_version = 13000;
  report.nvml.gpus = {{"Test GPU", 9, 0, int64_t{80} << 30, int64_t{79} << 30, 700.0, 1.0}};
  report.plugin = {true, "/x/libmoebius_cuda.so", "", 1};
  report.rapl = {{{.name = "package-0", .counter = "", .range_joules = 1, .counted = true}}, true, ""};
  report.libraries = {{"libtorch", "2.11.0", "tensors"}};
  return report;
}

const Advice* advice_on(const std::vector<Advice>& all, const std::string& missing) {
  const auto found = std::find_if(
      all.begin(), all.end(), [&](const Advice& a) { return a.missing.find(missing) != std::string::npos; });
  return found == all.end() ? nullptr : &*found;
}

TEST(DoctorReport, has_no_advice_for_a_healthy_machine) {
  EXPECT_TRUE(advise(healthy()).empty());
  EXPECT_NE(to_text(healthy()).find("Nothing is missing."), std::string::npos);
}

TEST(DoctorReport, advises_for_each_missing_thing) {
  DoctorReport report = healthy();
  report.plugin = {false, "", "no plug-in beside the binary; build with nvcc", 0};
  report.nvml.cuda_version = 12080;
  report.cpu.instruction_sets = {{"avx2", true}, {"avx512_bf16", false}};
  report.rapl = {{}, true, "root only"};
  report.disk_free_bytes = 1 << 20;
  report.memory_available_bytes = 1 << 20;
  const auto all = advise(report);
  ASSERT_NE(advice_on(all, "the CUDA plug-in"), nullptr);
  EXPECT_EQ(advice_on(all, "the CUDA plug-in")->remedy, "no plug-in beside the binary; build with nvcc");
  ASSERT_NE(advice_on(all, "a driver that serves CUDA 13"), nullptr);
  EXPECT_NE(advice_on(all, "a driver")->consequence.find("12.8"), std::string::npos);
  ASSERT_NE(advice_on(all, "bf16 instructions"), nullptr);
  ASSERT_NE(advice_on(all, "CPU energy counters"), nullptr);
  ASSERT_NE(advice_on(all, "disk space at /data"), nullptr);
  ASSERT_NE(advice_on(all, "memory"), nullptr);
  for (const Advice& item : all) EXPECT_FALSE(item.remedy.empty()) << item.missing;
}

TEST(DoctorReport, names_a_missing_gpu_once) {
  DoctorReport report = healthy();
  report.nvml = {};
  report.nvml.why = "no NVIDIA driver is installed; install it";
  report.plugin = {false, "", "no driver", 0};
  const auto all = advise(report);
  EXPECT_EQ(all.size(), 1u);
  ASSERT_NE(advice_on(all, "an NVIDIA GPU"), nullptr);
  EXPECT_EQ(advice_on(all, "an NVIDIA GPU")->remedy, report.nvml.why);
}

TEST(DoctorReport, json_keys_are_stable) {
  const auto json = to_json(healthy());
  std::vector<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"format", "moebius_version", "system", "cpu", "memory", "disk",
                                            "gpu", "cuda_plugin", "energy", "libraries", "advice"}));
  EXPECT_EQ(json["format"], 1);
  EXPECT_EQ(json["cpu"]["instruction_sets"]["avx512_bf16"], true);
  EXPECT_TRUE(json["cpu"]["limit_cores"].is_null());
  EXPECT_EQ(json["gpu"]["devices"][0]["compute_capability"], "9.0");
  EXPECT_EQ(json["gpu"]["devices"][0]["energy_readable"], true);
  EXPECT_EQ(json["gpu"]["driver_cuda_version"], "13.0");
  EXPECT_EQ(json["cuda_plugin"]["loaded"], true);
  EXPECT_TRUE(json["cuda_plugin"]["why_not"].is_null());
  EXPECT_EQ(json["energy"]["rapl_readable_domains"][0], "package-0");
}

TEST(DoctorReport, text_shows_limits_of_the_control_group) {
  DoctorReport report = healthy();
  report.cpu_limit_cores = 2.5;
  report.memory_limit_bytes = int64_t{8} << 30;
  report.cpu.usable_threads = 4;
  const std::string text = to_text(report);
  EXPECT_NE(text.find("limited to 2.5 cores"), std::string::npos);
  EXPECT_NE(text.find("(4 usable by this process)"), std::string::npos);
  EXPECT_NE(text.find("limited by the control group"), std::string::npos);
}

TEST(DoctorReport, reads_this_machine_without_an_error) {
  const DoctorReport report = probe_machine(".");
  EXPECT_GT(report.cpu.threads, 0);
  EXPECT_GT(report.memory_total_bytes, 0);
  EXPECT_GT(report.disk_free_bytes, 0);
  EXPECT_EQ(report.libraries.size(), 9u);
  for (const LibraryVersion& library : report.libraries) {
    EXPECT_FALSE(library.version.empty()) << library.name;
  }
  EXPECT_FALSE(to_text(report).empty());
}

}  // namespace
}  // namespace moebius::cli
