// The governor of a run against the real daemon's service and socket, over the stand-in for NVML.
#include "energy/powerd/live_governor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "energy/nvml_stand_in.h"
#include "energy/powerd/power_server.h"

namespace moebius::energy::powerd {
namespace {

using ::testing::HasSubstr;

class LiveGovernorTest : public ::testing::Test {
 protected:
  LiveGovernorTest() {
    settings_.set("STATE", folder_.path().string());
    // Two phases at three clocks; 1500 MHz is 2 % slower, 1200 MHz 6 %.
    write_file_atomic(profile(),
                      "gpu,phase,clock_mhz,time_s,energy_j\n"
                      "H,forward,1980,0.4,200\nH,forward,1500,0.408,160\nH,forward,1200,0.424,140\n"
                      "H,backward,1980,0.6,300\nH,backward,1500,0.612,240\nH,backward,1200,0.636,210\n"
                      "H,evaluation,1980,0.1,20\n");
    options_.mode = clocks::Mode::kOwn;
    options_.profile = profile();
    options_.socket = folder_ / "s";
    options_.gpu_name = "H";
  }
  ~LiveGovernorTest() override { stop(); }

  std::filesystem::path profile() const { return folder_ / "p.csv"; }
  std::string library() const { return built_or_named(MOEBIUS_NVML_STAND_IN); }
  NvmlDevice device() const { return Nvml::open(library()).value().device(0).value(); }

  void serve(ServiceOptions options = {.may_set = true, .allowed_uids = {static_cast<int64_t>(getuid())}}) {
    service_.emplace(Nvml::open(library()).value(), options, system_clock());
    server_.emplace(options_.socket, *service_);
    thread_ = std::thread([this] { server_->run(); });
  }
  void stop() {
    if (!server_) return;
    server_->stop();
    thread_.join();
    server_.reset();
    service_.reset();
  }
  // MHz of the GPU; 1980: not locked.
  int clock() const { return device().clock_mhz(ClockDomain::kSm).value(); }
  // A step of the made-up GPU at its clock.
  double step_seconds() const { return clock() == 1980 ? 1 : clock() == 1500 ? 1.02 : 1.06; }

  StandInSettings settings_;
  TestFolder folder_;
  LiveOptions options_;
  std::optional<PowerService> service_;
  std::optional<PowerServer> server_;
  std::thread thread_;
};

TEST_F(LiveGovernorTest, spends_what_it_may_and_resets_at_the_end) {
  serve();
  double seconds = 0;
  int at_1200 = 0;
  {
    LiveGovernor governor(options_, device());
    for (int i = 0; i < 2000; ++i) {
      const double took = step_seconds();
      at_1200 += clock() == 1200;
      seconds += took;
      governor.after_step(took);
      EXPECT_LE(seconds, (i + 1) * 1.03 + 1e-6);
    }
    EXPECT_EQ(governor.description(), "1500 MHz and 1200 MHz in turns");
    EXPECT_GT(governor.num_switches(), 2);
  }
  EXPECT_GT(at_1200, 300);
  EXPECT_GT(seconds, 2000 * 1.025);
  stop();
  EXPECT_EQ(clock(), 1980);
}

TEST_F(LiveGovernorTest, a_swallowed_switch_is_a_bad_target) {
  serve();
  settings_.set("SWITCH_MS", "never");
  options_.longest_switch_seconds = 0.01;
  LiveGovernor governor(options_, device());
  ::testing::internal::CaptureStderr();
  // 1200 MHz only comes up when the bucket is full.
  for (int i = 0; i < 1000; ++i) governor.after_step(1);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the clock reads 1980 MHz"));
  EXPECT_EQ(governor.bad_targets(), (std::set<int>{1200, 1500}));
  EXPECT_EQ(governor.locked_mhz(), 0);
}

TEST_F(LiveGovernorTest, a_clock_that_the_gpu_lacks_is_named_and_left_out) {
  serve();
  options_.mode = clocks::Mode::kFixed;
  options_.fixed_mhz = 1234;
  LiveGovernor governor(options_, device());
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 20; ++i) governor.after_step(1);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the nearest is 1230 MHz"));
  EXPECT_EQ(clock(), 1980);
}

TEST_F(LiveGovernorTest, a_slow_switch_is_measured) {
  serve();
  settings_.set("SWITCH_MS", "40");
  options_.mode = clocks::Mode::kFixed;
  LiveGovernor governor(options_, device());
  for (int i = 0; i < 14; ++i) governor.after_step(1);
  EXPECT_EQ(clock(), 1500);
  EXPECT_GT(governor.switch_seconds(), 0.005);
}

TEST_F(LiveGovernorTest, says_once_that_it_may_only_read) {
  serve({});
  ::testing::internal::CaptureStderr();
  LiveGovernor governor(options_, device());
  for (int i = 0; i < 40; ++i) governor.after_step(1);
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(
      text,
      HasSubstr("the clock governor may only read, clocks stay as they are: moebius-powerd runs read-only"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_THAT(governor.description(), HasSubstr("read-only ("));
}

TEST_F(LiveGovernorTest, runs_on_without_a_daemon_and_when_it_goes) {
  ::testing::internal::CaptureStderr();
  LiveGovernor alone(options_, device());
  alone.after_step(1);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("no moebius-powerd at "));
  serve();
  LiveGovernor governor(options_, device());
  for (int i = 0; i < 14; ++i) governor.after_step(1);
  EXPECT_EQ(clock(), 1500);
  stop();
  EXPECT_EQ(clock(), 1980);
  ::testing::internal::CaptureStderr();
  for (int i = 0; i < 400; ++i) governor.after_step(1);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("moebius-powerd is gone"));
}

TEST_F(LiveGovernorTest, wrong_options_are_refused_before_a_run) {
  const auto refusal = [&] {
    try {
      check_governor(options_);
    } catch (const UserError& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal(), "accepted");
  options_.gpu_name = "NVIDIA H200";
  EXPECT_THAT(refusal(), HasSubstr("is of H, and this GPU is a NVIDIA H200"));
  options_.profile.clear();
  EXPECT_THAT(refusal(), HasSubstr("energy.governor is own, which needs a profile of the GPU"));
  options_.mode = clocks::Mode::kOff;
  EXPECT_EQ(refusal(), "accepted");
}

}  // namespace
}  // namespace moebius::energy::powerd
