// Dispatchers are killed (SIGKILL) between two statements or system calls, again and again, while jobs are
// added, started, paused and finished. Afterwards nothing may be lost and nothing may have run twice.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <random>
#include <set>
#include <string>
#include <thread>

#include "base/file.h"
#include "base/log.h"
#include "base/test_folder.h"
#include "queue/dispatcher.h"
#include "queue/dispatcher_lock.h"
#include "queue/fault_point.h"
#include "queue/local_engine.h"

namespace moebius::queue {
namespace {

class SteadyGrid final : public ForecastSource {
 public:
  const Outlook& at(double now_s, double until_s) override {
    const auto begin = static_cast<int64_t>(now_s / 3600) * 3600;
    outlook_ = Outlook(
        begin, 3600,
        std::vector<double>(static_cast<size_t>((until_s - static_cast<double>(begin)) / 3600) + 2, 100));
    return outlook_;
  }

 private:
  Outlook outlook_;
};

// Marks in the folder: `twice` when another attempt is inside, `ran` once at the end. The first attempt of
// every third job is interrupted (code 75) and goes on when started again.
constexpr const char* kScript =
    "mkdir in.$MOEBIUS_QUEUE_JOB 2>/dev/null || echo $MOEBIUS_QUEUE_JOB >> twice; "
    "if [ $((MOEBIUS_QUEUE_JOB % 3)) = 0 ] && [ ! -e half.$MOEBIUS_QUEUE_JOB ]; then "
    ": > half.$MOEBIUS_QUEUE_JOB; rmdir in.$MOEBIUS_QUEUE_JOB; exit 75; fi; "
    "echo $MOEBIUS_QUEUE_JOB >> ran; rmdir in.$MOEBIUS_QUEUE_JOB";

// One life of a dispatcher: adds a job, then works until nothing is left or until its n-th fault point.
void live(const std::filesystem::path& folder, int64_t kill_at, bool add) {
  set_log_level(LogLevel::kOff);
  g_fault_points_left = kill_at;
  Store store(folder / "q", Database::Access::kCreate);
  if (add) {
    StoredJob job;
    job.name = "t";
    job.command = {"sh", "-c", kScript};
    job.folder = folder.string();
    job.length_s = 60;
    job.deadline_s = system_clock().unix_seconds() + 60;
    job.can_pause = true;
    Store(folder / "q", Database::Access::kWrite).add(job, system_clock().unix_seconds());
    std::ofstream(folder / "acknowledged", std::ios::app) << std::to_string(job.id) + "\n" << std::flush;
  }
  const DispatcherLock lock(folder / "q");
  LocalEngine engine(folder / "q");
  SteadyGrid grid;
  Dispatcher dispatcher(
      store, engine, grid, system_clock(),
      {.policy = "now", .capacity = 3, .switch_s = 0, .retry_s = 0, .max_lost_attempts = 1000000});
  for (;;) {
    dispatcher.tick();
    if (dispatcher.idle()) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

std::multiset<int64_t> numbers_in(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::multiset<int64_t> numbers;
  for (int64_t each = 0; in >> each;) numbers.insert(each);
  return numbers;
}

void kill_again_and_again(int64_t kills, uint64_t seed) {
  const TestFolder folder;
  std::mt19937_64 random(seed);
  int64_t killed = 0, lives = 0, adds = 0;
  while (killed < kills) {
    const auto kill_at = static_cast<int64_t>(1 + random() % 120);
    const bool add = random() % 2 == 0;
    adds += add;
    ++lives;
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        live(folder.path(), kill_at, add);
      } catch (const std::exception& error) {
        std::ofstream(folder / "errors", std::ios::app) << error.what() << "\n";
        _exit(1);
      }
      _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
      ASSERT_EQ(WTERMSIG(status), SIGKILL);
      ++killed;
    } else {
      ASSERT_EQ(WEXITSTATUS(status), 0) << read_file(folder / "errors");
    }
    ASSERT_LT(lives, 20 * kills);
  }
  live(folder.path(), 0, false);  // a last life in peace
  EXPECT_FALSE(std::filesystem::exists(folder / "twice"));
  Store store(folder / "q", Database::Access::kRead);
  store.database().check_whole();
  std::multiset<int64_t> done;
  store.list(true, [&](const JobRow& row) {
    EXPECT_EQ(row.state, State::done) << row.id << " " << row.note;
    done.insert(row.id);
  });
  // Each that was added ran to its end, once; none that was acknowledged is missing.
  EXPECT_EQ(numbers_in(folder / "ran"), done);
  const std::multiset<int64_t> acknowledged = numbers_in(folder / "acknowledged");
  EXPECT_TRUE(std::includes(done.begin(), done.end(), acknowledged.begin(), acknowledged.end()));
  EXPECT_LE(static_cast<int64_t>(done.size()), adds);
  EXPECT_GT(static_cast<int64_t>(done.size()), adds / 2);
  testing::Test::RecordProperty("kills", static_cast<int>(killed));
  testing::Test::RecordProperty("jobs", static_cast<int>(done.size()));
}

TEST(DispatcherKill, three_hundred_points_lose_and_double_nothing) {
  kill_again_and_again(300, 1);
}

// The slow test. MOEBIUS_QUEUE_KILLS=10000 takes six minutes on two cores.
TEST(DispatcherKill, DISABLED_many_points_lose_and_double_nothing) {
  const char* kills = std::getenv("MOEBIUS_QUEUE_KILLS");
  kill_again_and_again(kills != nullptr ? std::stoll(kills) : 1000, 2);
}

}  // namespace
}  // namespace moebius::queue
