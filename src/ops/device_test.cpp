#include "ops/device.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "base/check.h"
#include "base/error.h"

namespace moebius::ops {
namespace {

// Where the build put a library, or beside this program when the tests were carried to another machine.
std::string stand_in(const std::string& built) {
  if (std::filesystem::exists(built)) return built;
  return (std::filesystem::read_symlink("/proc/self/exe").parent_path() /
          std::filesystem::path(built).filename())
      .string();
}

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
namespace fs = std::filesystem;

TEST(PluginLoader, looks_beside_the_program_and_in_the_install_tree) {
  const auto paths = plugin_candidates("/opt/moebius/bin", "");
  ASSERT_GE(paths.size(), 2u);
  EXPECT_EQ(paths[0], "/opt/moebius/bin/libmoebius_cuda.so");
  EXPECT_EQ(paths[1], "/opt/moebius/lib/moebius/libmoebius_cuda.so");
}

TEST(PluginLoader, finds_the_plugin_from_a_test_program_of_the_build_tree) {
  EXPECT_THAT(plugin_candidates("/x/build/dev/src/ops", ""),
              testing::Contains(fs::path("/x/build/dev/lib/moebius/libmoebius_cuda.so")));
}

TEST(PluginLoader, takes_only_the_plugin_that_the_user_names) {
  EXPECT_EQ(plugin_candidates("/opt/moebius/bin", "/tmp/my.so"), std::vector<fs::path>{"/tmp/my.so"});
}

TEST(PluginLoader, ends_at_the_root_folder) {
  EXPECT_EQ(plugin_candidates("/", "").size(), 1u);
}

TEST(PluginLoader, says_where_it_looked_and_what_to_do) {
  const PluginStatus status = open_plugin({"/nowhere/a.so", "/nowhere/b.so"}, {});
  EXPECT_EQ(status.plugin, nullptr);
  EXPECT_THAT(status.why, AllOf(HasSubstr("/nowhere/a.so, /nowhere/b.so"), HasSubstr("MOEBIUS_CUDA_PLUGIN"),
                                HasSubstr("nvcc")));
}

TEST(PluginLoader, opens_a_plugin_of_its_own_version) {
  const PluginStatus status = open_plugin({"/nowhere/a.so", stand_in(MOEBIUS_PLUGIN_STAND_IN)}, {});
  ASSERT_NE(status.plugin, nullptr) << status.why;
  EXPECT_EQ(status.path, stand_in(MOEBIUS_PLUGIN_STAND_IN));
  EXPECT_EQ(status.why, "");
  EXPECT_EQ(status.plugin->device_count(), 0);
}

TEST(PluginLoader, refuses_another_interface_version) {
  const PluginStatus status = open_plugin({stand_in(MOEBIUS_PLUGIN_OF_OTHER_VERSION)}, {});
  EXPECT_EQ(status.plugin, nullptr);
  EXPECT_THAT(
      status.why,
      AllOf(HasSubstr(stand_in(MOEBIUS_PLUGIN_OF_OTHER_VERSION)), HasSubstr("interface version 99"),
            HasSubstr("needs " + std::to_string(kernels::kPluginAbiVersion)), HasSubstr("build both again")));
}

TEST(PluginLoader, refuses_a_library_that_is_no_plugin) {
  const PluginStatus status = open_plugin({stand_in(MOEBIUS_NO_PLUGIN)}, {});
  EXPECT_EQ(status.plugin, nullptr);
  EXPECT_THAT(status.why,
              AllOf(HasSubstr(stand_in(MOEBIUS_NO_PLUGIN)), HasSubstr("not a CUDA plug-in of moebius")));
}

TEST(PluginLoader, passes_on_what_the_dynamic_loader_says_of_a_broken_file) {
  const fs::path file = fs::path(testing::TempDir()) / "moebius_broken_plugin.so";
  std::ofstream(file) << "not a library";
  const PluginStatus status = open_plugin({file}, "/nowhere");
  fs::remove(file);
  EXPECT_EQ(status.plugin, nullptr);
  EXPECT_THAT(status.why, AllOf(HasSubstr("cannot be loaded"), HasSubstr("moebius_broken_plugin.so"),
                                HasSubstr("LD_LIBRARY_PATH")));
}

TEST(Device, cpu_is_always_there) {
  EXPECT_EQ(choose_device("cpu"), at::Device(at::kCPU));
  EXPECT_EQ(&kernel_table(at::kCPU), &kernels::cpu_kernels());
  EXPECT_EQ(current_stream(at::kCPU), nullptr);
}

TEST(Device, auto_takes_the_gpu_when_there_is_one) {
  EXPECT_EQ(choose_device("auto").is_cuda(), cuda_plugin() != nullptr);
}

TEST(Device, cuda_that_is_absent_is_refused_with_the_reason) {
  if (cuda_plugin() != nullptr) GTEST_SKIP() << "this machine has a GPU";
  try {
    choose_device("cuda");
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("device 'cuda' was asked for"),
                                    HasSubstr(load_cuda_plugin().why), HasSubstr("--device cpu")));
    EXPECT_THAT(load_cuda_plugin().why, Not(testing::IsEmpty()));
  }
}

TEST(Device, unknown_words_are_refused_by_name) {
  try {
    choose_device("gpu");
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "unknown device 'gpu'; choose cpu, cuda or auto");
  }
}

TEST(Device, kernels_take_fp32_and_bf16) {
  EXPECT_EQ(kernel_dtype(at::zeros({1}, at::kFloat)), kernels::DType::f32);
  EXPECT_EQ(kernel_dtype(at::zeros({1}, at::kBFloat16)), kernels::DType::bf16);
  EXPECT_THROW(kernel_dtype(at::zeros({1}, at::kHalf)), InternalError);
}

}  // namespace
}  // namespace moebius::ops
