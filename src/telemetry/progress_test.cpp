#include "telemetry/progress.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdlib>

#include "base/file.h"
#include "base/log.h"
#include "base/test_folder.h"

namespace moebius::telemetry {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Both ends of a pseudo-terminal; what was drawn is read from the master side.
class Terminal {
 public:
  explicit Terminal(unsigned short width) {
    winsize size{};
    size.ws_col = width;
    size.ws_row = 24;
    EXPECT_EQ(openpty(&master_, &slave_, nullptr, nullptr, &size), 0);
    fcntl(master_, F_SETFL, O_NONBLOCK);
  }
  ~Terminal() {
    close(master_);
    close(slave_);
  }
  int fd() const { return slave_; }
  void resize(unsigned short width) {
    winsize size{};
    size.ws_col = width;
    ioctl(master_, TIOCSWINSZ, &size);
  }
  std::string read() {
    std::string text;
    char buffer[4096];
    for (ssize_t count; (count = ::read(master_, buffer, sizeof buffer)) > 0;) text.append(buffer, count);
    return text;
  }

 private:
  int master_ = -1, slave_ = -1;
};

class ProgressTest : public ::testing::Test {
 protected:
  ProgressTest() { setenv("TERM", "xterm", 1); }
  ProgressOptions options(int fd, int64_t total) {
    ProgressOptions options;
    options.fd = fd;
    options.total = total;
    options.clock = &clock_;
    return options;
  }
  FixedClock clock_;
};

constexpr char kErase[] = "\r\033[K";

TEST_F(ProgressTest, live_line_is_rewritten_in_place_and_ends_with_a_newline) {
  Terminal terminal(100);
  {
    Progress progress(options(terminal.fd(), 3));
    EXPECT_TRUE(progress.live());
    progress.update(1, {{"loss", "2.31"}, {"", "9.12k tokens/s"}});
    EXPECT_EQ(terminal.read(), std::string(kErase) + "step 1/3   loss 2.31   9.12k tokens/s");
    clock_.advance(1);
    progress.update(2, {{"loss", "2.30"}});
    EXPECT_EQ(terminal.read(), std::string(kErase) + "step 2/3   loss 2.30   eta 1.00 s");
  }
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 2/3   loss 2.30   eta 1.00 s\r\n");
}

TEST_F(ProgressTest, redraws_are_limited_but_the_last_state_is_shown) {
  Terminal terminal(100);
  Progress progress(options(terminal.fd(), 0));
  progress.update(1, {});
  EXPECT_FALSE(progress.due(2));
  progress.update(2, {});
  clock_.advance(0.11);
  EXPECT_TRUE(progress.due(3));
  progress.update(3, {});
  progress.update(4, {});
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 1" + kErase + "step 3");
  progress.finish();
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 4\r\n");
  progress.update(5, {});
  progress.finish();
  EXPECT_EQ(terminal.read(), "");
}

TEST_F(ProgressTest, a_narrow_terminal_drops_the_last_fields_and_never_wraps) {
  Terminal terminal(30);
  Progress progress(options(terminal.fd(), 100));
  progress.update(1, {{"loss", "2.31"}, {"speed", "123456789"}, {"x", "y"}});
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 1/100   loss 2.31");
  clock_.advance(1);
  terminal.resize(42);
  progress.update(2, {{"loss", "2.31"}, {"a", "b"}, {"speed", "123456789"}});
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 2/100   loss 2.31   a b   eta 1m 38s");
  terminal.resize(8);
  clock_.advance(1);
  progress.update(3, {{"loss", "2.31"}});
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 3/");
  terminal.resize(21);
  clock_.advance(1);
  progress.update(4, {{"", "é漢é漢"}});
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 4/100   é漢é漢");
}

TEST_F(ProgressTest, notes_and_log_lines_stay_whole_above_the_live_line) {
  Terminal terminal(80);
  Progress progress(options(terminal.fd(), 0));
  progress.note("before");
  EXPECT_EQ(terminal.read(), "before\r\n");
  progress.update(1, {});
  terminal.read();
  progress.note("validation loss 1.6\nsample");
  EXPECT_EQ(terminal.read(), std::string(kErase) + "validation loss 1.6\r\nsample\r\n" + kErase + "step 1");
  ::testing::internal::CaptureStderr();
  log_warn("slow");
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "warning: slow\n");
  EXPECT_EQ(terminal.read(), std::string(kErase) + kErase + "step 1");
  progress.finish();
  terminal.read();
  ::testing::internal::CaptureStderr();
  log_warn("later");
  ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(terminal.read(), "");
}

TEST_F(ProgressTest, control_characters_of_a_value_do_not_reach_the_terminal) {
  Terminal terminal(80);
  Progress progress(options(terminal.fd(), 0));
  progress.update(1, {{"text", "a\n\033[2Jb"}});
  EXPECT_EQ(terminal.read(), std::string(kErase) + "step 1   text a  [2Jb");
}

class PlainProgress : public ProgressTest {
 protected:
  PlainProgress() { fd_ = open((folder_ / "out").c_str(), O_RDWR | O_CREAT, 0600); }
  ~PlainProgress() override { close(fd_); }
  std::string text() { return read_file(folder_ / "out"); }
  TestFolder folder_;
  int fd_;
};

TEST_F(PlainProgress, lines_at_the_first_the_nth_and_the_last_step) {
  ProgressOptions o = options(fd_, 25);
  o.log_every = 10;
  {
    Progress progress(o);
    EXPECT_FALSE(progress.live());
    for (int step = 1; step <= 25; ++step) {
      clock_.advance(2);
      progress.update(step, {{"loss", std::to_string(step)}});
    }
  }
  EXPECT_EQ(text(),
            "step 1/25   loss 1   eta 48.0 s\nstep 10/25   loss 10   eta 30.0 s\n"
            "step 20/25   loss 20   eta 10.0 s\nstep 25/25   loss 25\n");
}

TEST_F(PlainProgress, a_resumed_run_counts_its_own_steps_for_the_eta) {
  ProgressOptions o = options(fd_, 1000);
  o.first = 900;
  Progress progress(o);
  EXPECT_EQ(progress.eta_seconds(), std::nullopt);
  clock_.advance(50);  // the first step warms up
  progress.update(901, {});
  for (int step = 902; step <= 910; ++step) {
    clock_.advance(1);
    progress.update(step, {});
  }
  EXPECT_DOUBLE_EQ(progress.eta_seconds().value(), 90);
  EXPECT_THAT(text(), StartsWith("step 901/1000   eta 1h 22m\n"));
  EXPECT_THAT(text(), EndsWith("step 910/1000   eta 1m 30s\n"));
}

TEST_F(PlainProgress, a_dumb_terminal_gets_plain_lines) {
  Terminal terminal(80);
  setenv("TERM", "dumb", 1);
  Progress progress(options(terminal.fd(), 1));
  EXPECT_FALSE(progress.live());
  progress.update(1, {});
  progress.note("done");
  EXPECT_EQ(terminal.read(), "step 1/1\r\ndone\r\n");
}

}  // namespace
}  // namespace moebius::telemetry
