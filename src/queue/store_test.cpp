#include "queue/store.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "queue/recover.h"

namespace moebius::queue {
namespace {

using Access = Database::Access;

StoredJob job_named(const std::string& name) {
  StoredJob job;
  job.name = name;
  job.command = {"sh", "-c", "echo \"it's\" äöü"};
  job.folder = "/tmp";
  job.length_s = 3600;
  job.deadline_s = 1e6;
  job.can_pause = true;
  job.watts = 700;
  job.scaling_text = "1,1.9;1,2.1";
  return job;
}

TEST(QueueStore, keeps_what_was_added) {
  const TestFolder folder;
  {
    Store store(folder / "q", Access::kCreate);
    StoredJob job = job_named("first");
    job.priority = 7;
    store.add(job, 1000);
    EXPECT_EQ(job.id, 1);
  }
  Store store(folder / "q", Access::kRead);
  const auto job = store.find(1);
  ASSERT_TRUE(job);
  EXPECT_EQ(job->name, "first");
  EXPECT_EQ(job->command, job_named("").command);
  EXPECT_EQ(job->priority, 7);
  EXPECT_EQ(job->state, State::waiting);
  EXPECT_EQ(job->added_s, 1000);
  EXPECT_EQ(job->scaling.max_workers(), 2);
  EXPECT_DOUBLE_EQ(job->scaling.power(2), 2.1);
  EXPECT_EQ(job->pause_code, 75);
  EXPECT_FALSE(store.find(2));
  EXPECT_EQ(store.history(1).size(), 1u);
}

TEST(QueueStore, moves_jobs_only_from_the_state_they_are_in) {
  const TestFolder folder;
  Store store(folder / "q", Access::kCreate);
  StoredJob job = job_named("a");
  store.add(job, 1000);
  job.state = State::starting;
  job.attempts = 1;
  EXPECT_TRUE(store.move(job, State::waiting, 1001, "starts"));
  EXPECT_FALSE(store.move(job, State::waiting, 1002, "starts again"));
  EXPECT_EQ(store.history(1).size(), 2u);
  EXPECT_EQ(store.unfinished().at(0).attempts, 1);
  job.state = State::done;
  job.finished_s = 1003;
  EXPECT_TRUE(store.move(job, State::starting, 1003, "done"));
  EXPECT_TRUE(store.unfinished().empty());
  EXPECT_EQ(store.counts().at(static_cast<size_t>(State::done)), 1);
}

TEST(QueueStore, what_a_user_wants_beats_a_start_that_comes_later) {
  const TestFolder folder;
  Store store(folder / "q", Access::kCreate);
  StoredJob held = job_named("held"), cancelled = job_named("cancelled");
  store.add(held, 1000);
  store.add(cancelled, 1000);
  EXPECT_EQ(store.want(held.id, Wanted::hold, 1001)->state, State::waiting);
  EXPECT_EQ(store.want(cancelled.id, Wanted::cancel, 1001)->state, State::cancelled);
  held.state = cancelled.state = State::starting;
  EXPECT_FALSE(store.move(held, State::waiting, 1002, "starts"));
  EXPECT_FALSE(store.move(cancelled, State::waiting, 1002, "starts"));
  EXPECT_EQ(store.want(held.id, Wanted::run, 1003)->wanted, Wanted::run);
  EXPECT_TRUE(store.move(held, State::waiting, 1004, "starts"));
  // One that runs is cancelled by the dispatcher.
  EXPECT_EQ(store.want(held.id, Wanted::cancel, 1005)->state, State::starting);
  EXPECT_EQ(store.want(held.id, Wanted::run, 1006)->wanted, Wanted::cancel);
  EXPECT_FALSE(store.want(99, Wanted::run, 1006));
}

TEST(QueueStore, lists_in_order_and_leaves_out_what_is_over) {
  const TestFolder folder;
  Store store(folder / "q", Access::kCreate);
  std::vector<StoredJob> jobs(5, job_named("x"));
  store.add(jobs, 1000);
  store.want(3, Wanted::cancel, 1001);
  std::vector<int64_t> ids;
  store.list(false, [&](const JobRow& row) { ids.push_back(row.id); });
  EXPECT_EQ(ids, (std::vector<int64_t>{1, 2, 4, 5}));
  ids.clear();
  store.list(true, [&](const JobRow& row) { ids.push_back(row.id); });
  EXPECT_EQ(ids.size(), 5u);
}

TEST(QueueStore, refuses_what_is_not_its_own_and_leaves_it_as_it_is) {
  const TestFolder folder;
  EXPECT_NE(message_of<UserError>([&] { Store(folder / "q", Access::kRead); }).find("there is no queue in"),
            std::string::npos);

  // A file of something else.
  const std::string thesis(5000, 'a');
  write_file_atomic(folder / "text/queue.db", thesis);
  EXPECT_NE(message_of<UserError>([&] { Store(folder / "text", Access::kCreate); }).find("is damaged"),
            std::string::npos);
  EXPECT_EQ(read_file(folder / "text/queue.db"), thesis);

  // A database of something else.
  make_folders(folder / "other");
  Database(folder / "other/queue.db", Access::kCreate).execute("CREATE TABLE wines (name TEXT)");
  EXPECT_NE(
      message_of<UserError>([&] { Store(folder / "other", Access::kCreate); }).find("is not that of a queue"),
      std::string::npos);

  // A database that has gone while jobs are left.
  Store(folder / "gone", Access::kCreate);
  make_folders(folder / "gone/jobs/1");
  std::filesystem::remove(folder / "gone/queue.db");
  EXPECT_NE(message_of<UserError>([&] {
              Store(folder / "gone", Access::kCreate);
            }).find("is missing or empty, but"),
            std::string::npos);

  // One of a later version.
  { Store(folder / "later", Access::kCreate).database().execute("PRAGMA user_version=2"); }
  EXPECT_NE(message_of<UserError>([&] { Store(folder / "later", Access::kWrite); }).find("has version 2"),
            std::string::npos);
}

TEST(QueueStore, a_damaged_page_is_found_and_not_written_to) {
  const TestFolder folder;
  {
    Store store(folder / "q", Access::kCreate);
    std::vector<StoredJob> jobs(200, job_named("x"));
    store.add(jobs, 1000);
    store.database().execute("PRAGMA wal_checkpoint(TRUNCATE)");
  }
  std::string bytes = read_file(folder / "q/queue.db");
  for (size_t i = 4096 * 5; i < 4096 * 9; ++i) bytes[i] = static_cast<char>(i * 31);
  write_file_atomic(folder / "q/queue.db", bytes);
  EXPECT_NE(message_of<UserError>([&] {
              Store store(folder / "q", Access::kWrite);
              store.database().check_whole();
            }).find("is damaged"),
            std::string::npos);
  EXPECT_TRUE(read_file(folder / "q/queue.db") == bytes);
}

TEST(QueueStore, what_can_be_read_of_a_damaged_database_is_saved) {
  const TestFolder folder;
  {
    Store store(folder / "q", Access::kCreate);
    std::vector<StoredJob> jobs(2000, job_named("a job with a name that fills pages"));
    store.add(jobs, 1000);
    store.database().execute("PRAGMA wal_checkpoint(TRUNCATE)");
  }
  std::string bytes = read_file(folder / "q/queue.db");
  const size_t middle = bytes.size() / 3 / 4096 * 4096;
  for (size_t i = middle; i < middle + 4096; ++i) bytes[i] = static_cast<char>(i * 31);
  write_file_atomic(folder / "q/queue.db", bytes);
  const Recovered recovered = recover_database(folder / "q");
  EXPECT_TRUE(read_file(folder / "q/queue.db") == bytes);
  EXPECT_GT(recovered.jobs, 1500);
  EXPECT_LT(recovered.jobs, 2000);
  EXPECT_FALSE(recovered.complete);
  EXPECT_NE(message_of<UserError>([&] { recover_database(folder / "q"); }).find("exists already"),
            std::string::npos);
  std::filesystem::rename(recovered.file, folder / "q/queue.db");
  Store store(folder / "q", Access::kWrite);
  store.database().check_whole();
  EXPECT_EQ(static_cast<int64_t>(store.unfinished().size()), recovered.jobs);
  EXPECT_TRUE(store.find(1));
  EXPECT_TRUE(store.find(2000));
  StoredJob next = job_named("next");
  store.add(next, 2000);
  EXPECT_EQ(next.id, 2001);

  write_file_atomic(folder / "text/queue.db", std::string(9000, 'x'));
  EXPECT_NE(message_of<UserError>([&] { recover_database(folder / "text"); }).find("no job can be read"),
            std::string::npos);
}

TEST(QueueStore, scaling_is_read_strictly) {
  EXPECT_EQ(parse_scaling("").max_workers(), 1);
  EXPECT_EQ(parse_scaling("10,18,30;100,200,310").max_workers(), 3);
  EXPECT_DOUBLE_EQ(parse_scaling("10,18,30;100,200,310").speed(3), 3);
  for (const char* text : {"1", "1;", ";1", "1,2;1", "0;1", "a;b", "1,;1,2", "-1;1"})
    EXPECT_NE(message_of<UserError>([&] { (void)parse_scaling(text); }), "") << text;
}

}  // namespace
}  // namespace moebius::queue
