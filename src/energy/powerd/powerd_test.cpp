// The service, the socket, the guard: moebius-powerd as it runs, over the stand-in for NVML, whose locked
// clocks lie in files and outlive every process, as on a GPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <fstream>
#include <functional>
#include <thread>

#include "base/file.h"
#include "base/test_folder.h"
#include "energy/nvml_stand_in.h"
#include "energy/powerd/guard.h"
#include "energy/powerd/power_client.h"
#include "energy/powerd/power_service.h"

namespace moebius::energy::powerd {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kFirst[] = "GPU-00000000-0000-0000-0000-000000000000";
constexpr char kSecond[] = "GPU-00000000-0000-0000-0000-000000000001";

class PowerTest : public ::testing::Test {
 protected:
  PowerTest() {
    settings_.set("STATE", folder_.path().string());
    settings_.set("GPUS", "2");
  }
  std::string library() const { return built_or_named(MOEBIUS_NVML_STAND_IN); }
  // "1200" while GPU `index` is locked to that; empty when it is not.
  std::string locked(int index = 0) const {
    std::ifstream file(folder_ / concat("gpu", index, ".locked"));  // it may go at any moment
    std::string text;
    std::getline(file, text);
    return text;
  }
  // Whether `holds` comes true within some seconds.
  static bool soon(const std::function<bool()>& holds) {
    for (int i = 0; i < 2000; ++i) {
      if (holds()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  StandInSettings settings_;
  TestFolder folder_;
};

class PowerServiceTest : public PowerTest {
 protected:
  PowerService service(ServiceOptions options = {.may_set = true, .allowed_uids = {1000}}) {
    return PowerService(Nvml::open(library()).value(), options, clock_);
  }
  FixedClock clock_;
  Client user_{1, 1000, 4711}, other_{2, 1000, 4712}, stranger_{3, 2000, 4713};
};

TEST_F(PowerServiceTest, reads_for_everybody) {
  PowerService powerd = service({});
  EXPECT_EQ(powerd.handle(stranger_, "gpus"),
            concat(kFirst, " Stand-in GPU\n", kSecond, " Stand-in GPU\nok"));
  EXPECT_THAT(powerd.handle(stranger_, concat("clocks ", kFirst)), StartsWith("ok 210 225 240"));
  EXPECT_EQ(powerd.handle(stranger_, "status"), "ok read-only");
}

TEST_F(PowerServiceTest, is_read_only_by_default) {
  PowerService powerd = service({.allowed_uids = {1000}});
  EXPECT_THAT(powerd.handle(user_, concat("lock ", kFirst, " 1200 60")),
              StartsWith("error permission moebius-powerd runs read-only"));
  EXPECT_THAT(powerd.handle({9, 0, 1}, concat("lock ", kFirst, " 1200 60")), StartsWith("error permission"));
  EXPECT_EQ(locked(), "");
}

TEST_F(PowerServiceTest, locks_for_users_on_the_list_alone) {
  PowerService powerd = service();
  EXPECT_EQ(powerd.handle(user_, concat("lock ", kFirst, " 1200 60")), "ok 1200");
  EXPECT_EQ(locked(), "1200");
  EXPECT_EQ(powerd.handle(stranger_, concat("lock ", kSecond, " 1200 60")),
            "error permission user 2000 may not set clocks; add it with --allow-uid 2000");
  EXPECT_EQ(locked(1), "");
  EXPECT_THAT(powerd.handle(other_, concat("lock ", kFirst, " 900 60")),
              HasSubstr("is locked by process 4711"));
  powerd.handle(other_, concat("reset ", kFirst));  // not its own
  EXPECT_EQ(locked(), "1200");
}

TEST_F(PowerServiceTest, names_the_nearest_clock_and_its_own_bounds) {
  PowerService powerd = service({.may_set = true, .allowed_uids = {1000}, .min_mhz = 900, .max_mhz = 1800});
  EXPECT_EQ(powerd.handle(user_, concat("lock ", kFirst, " 1234 60")),
            "error invalid 1234 MHz is not a clock of this GPU (210 to 1980 MHz); the nearest is 1230 MHz");
  EXPECT_EQ(powerd.handle(user_, concat("lock ", kFirst, " 600 60")),
            "error invalid 600 MHz is outside what this daemon allows, 900 to 1800 MHz");
  EXPECT_EQ(locked(), "");
  EXPECT_THAT(powerd.handle(user_, "status"), Not(HasSubstr("process")));
}

TEST_F(PowerServiceTest, allows_nothing_beyond_its_list) {
  PowerService powerd = service();
  for (const char* request :
       {"power-limit 300", "", "lock", "lock GPU-1 1200 60", "renew x", "lock ../x 1 1"})
    EXPECT_THAT(powerd.handle(user_, request), StartsWith("error ")) << request;
}

TEST_F(PowerServiceTest, leases_end_unless_renewed) {
  PowerService powerd = service();
  powerd.handle(user_, concat("lock ", kFirst, " 1200 60"));
  clock_.advance(50);
  EXPECT_EQ(powerd.handle(user_, "renew 60"), "ok");
  clock_.advance(50);
  powerd.expire();
  EXPECT_EQ(locked(), "1200");
  EXPECT_EQ(powerd.next_expiry_seconds(), 10);
  clock_.advance(10);
  ::testing::internal::CaptureStderr();
  powerd.expire();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("the lease of GPU-"));
  EXPECT_EQ(locked(), "");
}

TEST_F(PowerServiceTest, a_client_that_goes_and_a_service_that_ends_reset) {
  {
    PowerService powerd = service();
    powerd.handle(user_, concat("lock ", kFirst, " 1200 60"));
    powerd.handle(other_, concat("lock ", kSecond, " 900 60"));
    powerd.disconnect(1);
    EXPECT_EQ(locked(0), "");
    EXPECT_EQ(locked(1), "900");
  }
  EXPECT_EQ(locked(1), "");
}

TEST_F(PowerServiceTest, a_driver_that_refuses_is_reported) {
  PowerService powerd = service();
  settings_.set("LOCK_STATUS", "4");
  EXPECT_EQ(
      powerd.handle(user_, concat("lock ", kFirst, " 1200 60")),
      "error permission nvmlDeviceSetGpuLockedClocks: Insufficient Permissions (status 4); locking clocks "
      "needs root: run moebius-powerd as root");
  settings_.set("LOCK_STATUS", "15");
  EXPECT_THAT(powerd.handle(user_, concat("lock ", kFirst, " 1200 60")), HasSubstr("GPU is lost"));
  EXPECT_FALSE(powerd.next_expiry_seconds());
}

TEST_F(PowerTest, a_slow_switch_is_waited_for_and_a_swallowed_one_is_found) {
  const ClockControl control(Nvml::open(library()).value().device(0).value());
  settings_.set("SWITCH_MS", "30");
  ASSERT_TRUE(control.lock(1200));
  const auto took = wait_for_clock(control.device(), 1200, 5);
  ASSERT_TRUE(took) << took.error().message;
  EXPECT_GT(*took, 0.005);
  settings_.set("SWITCH_MS", "never");
  ASSERT_TRUE(control.lock(900));
  const auto swallowed = wait_for_clock(control.device(), 900, 0.01);
  ASSERT_FALSE(swallowed);
  EXPECT_EQ(swallowed.error().kind, ErrorKind::kTimeout);
  EXPECT_THAT(swallowed.error().message, HasSubstr("the clock reads 1980 MHz"));
}

// The daemon as a process of its own.
class PowerdTest : public PowerTest {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(MOEBIUS_POWERD)) GTEST_SKIP() << "moebius-powerd is not built";
  }
  ~PowerdTest() override {
    if (daemon_ > 0) {
      kill(daemon_, SIGKILL);
      waitpid(daemon_, nullptr, 0);
    }
  }
  std::string socket() const { return folder_ / "s"; }

  void start(std::vector<std::string> more = {"--may-set-clocks", "--allow-uid", std::to_string(getuid())}) {
    std::vector<std::string> words{MOEBIUS_POWERD, "--socket", socket(), "--nvml", library()};
    words.insert(words.end(), more.begin(), more.end());
    daemon_ = fork();
    if (daemon_ == 0) {
      std::vector<char*> arguments;
      for (std::string& word : words) arguments.push_back(word.data());
      arguments.push_back(nullptr);
      if (freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
      alarm(60);
      execv(MOEBIUS_POWERD, arguments.data());
      _exit(127);
    }
    ASSERT_TRUE(soon([&] { return PowerClient::connect(socket()).ok(); }));
  }
  int end(int signal_number) {
    kill(daemon_, signal_number);
    int status = 0;
    waitpid(daemon_, &status, 0);
    daemon_ = 0;
    return status;
  }
  // The process that serves, child of the guard.
  pid_t worker() const {
    pid_t pid = 0;
    soon([&] {
      const std::string children = read_file(concat("/proc/", daemon_, "/task/", daemon_, "/children"));
      pid = children.empty() ? 0 : std::stoi(children);
      return pid > 0;
    });
    return pid;
  }

  pid_t daemon_ = 0;
};

TEST_F(PowerdTest, serves_an_unprivileged_client) {
  start();
  PowerClient client = PowerClient::connect(socket()).value();
  EXPECT_EQ(client.clocks_mhz(kFirst).value().front(), 210);
  ASSERT_TRUE(client.lock(kFirst, 1200, 60));
  EXPECT_EQ(locked(), "1200");
  EXPECT_TRUE(client.renew(60));
  EXPECT_THAT(client.status().value(), HasSubstr(concat("1200 MHz by process ", getpid())));
  const auto wrong = client.lock(kFirst, 1234, 60);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().kind, ErrorKind::kInvalid);
  EXPECT_THAT(wrong.error().message, HasSubstr("the nearest is 1230 MHz"));
  EXPECT_TRUE(client.reset(kFirst));
  EXPECT_EQ(locked(), "");
}

TEST_F(PowerdTest, is_read_only_unless_told) {
  start({});
  PowerClient client = PowerClient::connect(socket()).value();
  EXPECT_EQ(client.lock(kFirst, 1200, 60).error().kind, ErrorKind::kPermission);
  EXPECT_EQ(locked(), "");
}

TEST_F(PowerdTest, kill_minus_nine_of_the_trainer_resets) {
  start();
  const pid_t trainer = fork();
  if (trainer == 0) {
    auto client = PowerClient::connect(socket());
    if (!client || !client->lock(kFirst, 1200, 300)) _exit(1);
    alarm(60);
    while (true) pause();
  }
  ASSERT_TRUE(soon([&] { return locked() == "1200"; }));
  kill(trainer, SIGKILL);
  waitpid(trainer, nullptr, 0);
  EXPECT_TRUE(soon([&] { return locked().empty(); }));
}

TEST_F(PowerdTest, kill_minus_nine_of_the_serving_process_resets) {
  start();
  PowerClient client = PowerClient::connect(socket()).value();
  ASSERT_TRUE(client.lock(kFirst, 1200, 300));
  ASSERT_TRUE(client.lock(kSecond, 900, 300));
  kill(worker(), SIGKILL);
  int status = 0;
  waitpid(daemon_, &status, 0);  // the guard resets and ends
  daemon_ = 0;
  EXPECT_EQ(WEXITSTATUS(status), 1);
  EXPECT_EQ(locked(0), "");
  EXPECT_EQ(locked(1), "");
}

TEST_F(PowerdTest, kill_minus_nine_of_the_guard_resets) {
  start();
  PowerClient client = PowerClient::connect(socket()).value();
  ASSERT_TRUE(client.lock(kFirst, 1200, 300));
  end(SIGKILL);
  EXPECT_TRUE(soon([&] { return locked().empty(); }));
  EXPECT_TRUE(soon([&] { return !std::filesystem::exists(socket()); }));
}

TEST_F(PowerdTest, a_signal_ends_it_properly) {
  start();
  PowerClient client = PowerClient::connect(socket()).value();
  ASSERT_TRUE(client.lock(kFirst, 1200, 300));
  EXPECT_EQ(end(SIGTERM), 0);
  EXPECT_EQ(locked(), "");
  EXPECT_FALSE(std::filesystem::exists(socket()));
}

TEST_F(PowerdTest, what_was_left_locked_is_reset_at_the_next_start) {
  write_file_atomic(folder_ / "gpu0.locked", "1200\n");
  write_file_atomic(socket() + ".locks", concat(kFirst, "\n"));
  start({});  // also read-only: a reset gives back, it takes nothing
  EXPECT_EQ(locked(), "");
}

}  // namespace
}  // namespace moebius::energy::powerd
