// The queue on a real Slurm of one node: munged, slurmctld and slurmd of the distribution, started here on
// loopback with folders of this test, run a training that pauses, resumes and changes its size as a replayed
// grid asks. The same Slurm reached through its slurmrestd, where that and its JWT plugin are installed.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "base/clock.h"
#include "base/concat.h"
#include "base/file.h"
#include "base/test_folder.h"
#include "tests/child_process.h"
#include "tests/loopback.h"
#include "tests/tiny_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

// Where a program is; daemons lie in folders that PATH may lack.
std::string find_program(const std::string& name) {
  for (const char* folder : {"/usr/sbin/", "/usr/bin/", "/usr/local/sbin/", "/usr/local/bin/"}) {
    if (::access((folder + name).c_str(), X_OK) == 0) return folder + name;
  }
  return {};
}

// A process in the foreground that is ended with this object.
class Daemon {
 public:
  Daemon(std::vector<std::string> command, const fs::path& log) {
    pid_ = ::fork();
    if (pid_ == 0) {
      if (::freopen(log.c_str(), "a", stdout) == nullptr) ::_exit(127);
      ::dup2(STDOUT_FILENO, STDERR_FILENO);
      std::vector<char*> argv;
      for (std::string& each : command) argv.push_back(each.data());
      argv.push_back(nullptr);
      ::alarm(600);  // no test leaves a daemon behind
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
  }
  ~Daemon() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGTERM);
    ::waitpid(pid_, nullptr, 0);
  }
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

 private:
  pid_t pid_ = -1;
};

// Whether the distribution's package with this plugin of Slurm is installed.
bool has_slurm_plugin(const std::string& file) {
  std::error_code error;
  for (const auto& each : fs::directory_iterator("/usr/lib", error)) {
    if (fs::exists(each.path() / "slurm-wlm" / file, error)) return true;
  }
  return false;
}

int run_quietly(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str());
}

class SlurmTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* program : {"munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol"}) {
      if (find_program(program).empty())
        GTEST_SKIP() << program
                     << " is not installed (munge, slurmctld, slurmd and slurm-client of the distribution)";
    }
    for (const char* each : {"munge", "state", "spool"}) make_folders(folder / each);
    fs::permissions(folder / "munge", fs::perms::owner_all);
    std::string key(1024, 0);
    std::ifstream("/dev/urandom").read(key.data(), 1024);
    write_file_atomic(folder / "munge/key", key);
    write_file_atomic(folder / "jwt.key", key.substr(0, 32));
    fs::permissions(folder / "jwt.key", fs::perms::owner_read | fs::perms::owner_write);
    fs::permissions(folder / "munge/key", fs::perms::owner_read);
    const auto in = [&](const char* name) { return (folder / name).string(); };
    munged_.emplace(std::vector<std::string>{find_program("munged"), "--foreground", "--force",
                                             "--key-file=" + in("munge/key"), "--socket=" + in("munge/sock"),
                                             "--pid-file=" + in("munge/pid"), "--log-file=" + in("munge/log"),
                                             "--seed-file=" + in("munge/seed")},
                    folder / "munged.out");
    ASSERT_TRUE(comes_within(20, [&] { return fs::exists(folder / "munge/sock"); }))
        << read_file(folder / "munged.out");

    char host[256] = {};
    ASSERT_EQ(::gethostname(host, sizeof host - 1), 0);
    const std::string short_host = std::string(host).substr(0, std::string(host).find('.'));
    write_file_atomic(
        folder / "slurm.conf",
        concat("ClusterName=moebius\nSlurmctldHost=", short_host, "(127.0.0.1)\nSlurmUser=", user_name(),
               "\nSlurmdUser=", user_name(), "\nAuthType=auth/munge\nAuthInfo=socket=", in("munge/sock"),
               has_slurm_plugin("auth_jwt.so")
                   ? concat("\nAuthAltTypes=auth/jwt\nAuthAltParameters=jwt_key=", in("jwt.key"))
                   : "",
               "\nSlurmctldPort=", free_port(), "\nSlurmdPort=", free_port(),
               "\nStateSaveLocation=", in("state"), "\nSlurmdSpoolDir=", in("spool"),
               "\nSlurmctldPidFile=", in("slurmctld.pid"), "\nSlurmdPidFile=", in("slurmd.pid"),
               "\nSlurmctldLogFile=", in("slurmctld.log"), "\nSlurmdLogFile=", in("slurmd.log"),
               "\nProctrackType=proctrack/pgid\nTaskPlugin=task/none\nSelectType=select/cons_tres\n"
               "SelectTypeParameters=CR_CPU\nSchedulerType=sched/backfill\n"
               "SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0\nReturnToService=2\n"
               "MpiDefault=none\nKillWait=5\nSlurmdParameters=config_overrides\nNodeName=node1 NodeHostname=",
               short_host,
               " NodeAddr=127.0.0.1 CPUs=4 State=UNKNOWN\n"
               "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"));
    ::setenv("SLURM_CONF", in("slurm.conf").c_str(), 1);
    controller_.emplace(std::vector<std::string>{find_program("slurmctld"), "-D", "-f", in("slurm.conf")},
                        folder / "slurmctld.out");
    node_.emplace(
        std::vector<std::string>{find_program("slurmd"), "-D", "-N", "node1", "-f", in("slurm.conf")},
        folder / "slurmd.out");
    ASSERT_TRUE(
        comes_within(60, [&] { return run_quietly("sinfo --noheader --states=idle | grep -q idle") == 0; }))
        << read_file(folder / "slurmctld.out") << read_file(folder / "slurmd.out");
  }
  void TearDown() override { ::unsetenv("SLURM_CONF"); }

  // What a command prints, without the end of the line.
  static std::string output_of(const std::string& command) {
    FILE* pipe = ::popen(command.c_str(), "r");
    char text[4096] = {};
    if (pipe == nullptr) return {};
    const size_t size = ::fread(text, 1, sizeof text - 1, pipe);
    ::pclose(pipe);
    return {text, size > 0 && text[size - 1] == '\n' ? size - 1 : size};
  }

  static std::string user_name() { return output_of("id -un"); }

  // 2031-01-01 on: clean from 00:00 to 03:00, dirty for the three hours after it, and so on.
  std::string grid() {
    std::string text = "utc_iso8601,lifecycle_g_per_kwh,direct_g_per_kwh\n";
    for (int hour = 0; hour < 60 * 24; ++hour)
      text += iso_time(1924992000.0 + 3600.0 * hour) + (hour / 3 % 2 == 0 ? ",100,50\n" : ",500,250\n");
    write_file_atomic(folder / "XX-TEST.csv", text);
    return (folder / "XX-TEST.csv").string();
  }
  nlohmann::json show(int id) {
    return nlohmann::json::parse(
        run_program({"queue", "show", std::to_string(id), "--queue", queue(), "--json"}).output);
  }
  std::string queue() const { return (folder / "q").string(); }

  TestFolder folder;

 private:
  std::optional<Daemon> munged_, controller_, node_;
};

TEST_F(SlurmTest, a_training_pauses_resumes_and_changes_its_size_with_the_grid) {
  const std::string config = write_tiny_config(folder, 100000000);
  write_file_atomic(folder / "scaling.csv",
                    "profile,workers,throughput_per_s,power_w\nt,1,1,100\nt,2,1.6,200\n");
  const std::string run = (folder / "run").string();
  // An hour of the grid passes in 2 s. 20 hours of work in 28, 14 of them clean: two workers in the first
  // clean hours, then one, and pauses between.
  const Finished added = run_program({"queue",      "add",
                                      "--queue",    queue(),
                                      "--duration", "20h",
                                      "--slack",    "8h",
                                      "--now",      "2031-01-20T02:30Z",
                                      "--watts",    "100",
                                      "--scaling",  (folder / "scaling.csv").string(),
                                      "--folder",   folder.path().string(),
                                      "--",         MOEBIUS_PROGRAM,
                                      "train",      config,
                                      "--run",      run,
                                      "--threads",  "{workers}",
                                      "--set",      "checkpoint.every=1000000",
                                      "--device",   "cpu"});
  ASSERT_EQ(added.code, 0) << added.errors;
  ChildProcess dispatcher(
      {"queue",      "run",         "--queue",           queue(),   "--engine",      "slurm",    "--carbon",
       grid(),       "--grid-time", "2031-01-20T02:30Z", "--speed", "1800",          "--policy", "elastic",
       "--forecast", "oracle",      "--capacity",        "4",       "--switch-time", "10m",      "--tick",
       "0.2"},
      300);
  // Started in the clean half hour, asked to save in the dirty hours, started again in the next clean ones.
  EXPECT_TRUE(comes_within(200, [&] {
    const std::string history = show(1)["history"].dump();
    return history.find("starts with 2 workers") != std::string::npos &&
           history.find("paused") != std::string::npos &&
           history.find("starts with 1 worker") != std::string::npos;
  })) << show(1).dump(1);
  ASSERT_EQ(run_program({"queue", "cancel", "1", "--queue", queue()}).code, 0);
  EXPECT_TRUE(comes_within(90, [&] { return show(1)["state"] == "cancelled"; })) << show(1).dump(1);
  dispatcher.signal(SIGINT);
  const Finished finished = dispatcher.wait();
  EXPECT_EQ(finished.code, 0) << finished.errors;
  const auto job = show(1);
  EXPECT_GE(job["switches"].get<int>(), 1);
  EXPECT_GT(job["energy_kwh"].get<double>(), 0);
  // An attempt that is asked to pause before its batch script listens is ended by Slurm and counts as lost:
  // its work is done again from the last checkpoint, and the next attempt pauses as it should.
  EXPECT_LE(job["lost_attempts"], 1) << job.dump(1);
  // Each attempt went on from the checkpoint of the one before.
  const std::string log = read_file(folder / "q/jobs/1/log");
  EXPECT_NE(log.find("interrupted after step"), std::string::npos) << log;
  EXPECT_TRUE(fs::exists(fs::path(run) / "summary.json"));
}

// By slurmrestd: a training starts, saves and ends when it is held, goes on, and is cancelled.
TEST_F(SlurmTest, over_rest_a_training_pauses_and_goes_on) {
  if (find_program("slurmrestd").empty() || !has_slurm_plugin("auth_jwt.so"))
    GTEST_SKIP() << "slurmrestd or slurm-wlm-jwt-plugin of the distribution is not installed";
  if (::geteuid() != 0)
    GTEST_SKIP() << "slurmrestd refuses to run as Slurm's user, and only root can be another";
  fs::permissions(folder.path(), fs::perms(0755));  // for nobody, as whom it runs
  const std::string conf = (folder / "slurm.conf").string(), address = concat("127.0.0.1:", free_port());
  const std::string token_file = (folder / "token").string();
  ASSERT_EQ(::setenv("SLURM_JWT", "daemon", 1), 0);  // it asks with the tokens of its callers
  const Daemon rest({find_program("slurmrestd"), "-u", "nobody", "-a", "rest_auth/jwt", "-s", "v0.0.38", "-f",
                     conf, address},
                    folder / "slurmrestd.out");
  ::unsetenv("SLURM_JWT");
  write_file_atomic(token_file, output_of("scontrol token lifespan=600 username=" + user_name()));
  ASSERT_TRUE(read_file(token_file).starts_with("SLURM_JWT=")) << read_file(token_file);
  const std::string config = write_tiny_config(folder, 100000000), run = (folder / "run").string();
  ASSERT_EQ(run_program({"queue", "add", "--queue", queue(), "--duration", "20h", "--folder",
                         folder.path().string(), "--", MOEBIUS_PROGRAM, "train", config, "--run", run,
                         "--threads", "{workers}", "--device", "cpu"})
                .code,
            0);
  ChildProcess dispatcher(
      {"queue", "run", "--queue", queue(), "--engine", "slurm", "--slurm-rest", "http://" + address,
       "--slurm-token-file", token_file, "--slurm-arg=--partition=all", "--tick", "0.2"},
      200);
  const auto trains = [&](const std::string& beyond) {
    const fs::path file = fs::path(run) / "metrics.jsonl";
    return fs::exists(file) && read_file(file).size() > beyond.size() + 2000;
  };
  EXPECT_TRUE(comes_within(60, [&] { return trains(""); }))
      << show(1).dump(1) << read_file(folder / "slurmrestd.out");
  ASSERT_EQ(run_program({"queue", "pause", "1", "--queue", queue()}).code, 0);
  EXPECT_TRUE(comes_within(60, [&] { return show(1)["state"] == "held"; })) << show(1).dump(1);
  const std::string log = read_file(folder / "q/jobs/1/log"),
                    before = read_file(fs::path(run) / "metrics.jsonl");
  EXPECT_NE(log.find("interrupted after step"), std::string::npos) << log;
  ASSERT_EQ(run_program({"queue", "resume", "1", "--queue", queue()}).code, 0);
  EXPECT_TRUE(comes_within(60, [&] { return trains(before); })) << show(1).dump(1);
  ASSERT_EQ(run_program({"queue", "cancel", "1", "--queue", queue()}).code, 0);
  EXPECT_TRUE(comes_within(60, [&] { return show(1)["state"] == "cancelled"; })) << show(1).dump(1);
  dispatcher.signal(SIGINT);
  const Finished finished = dispatcher.wait();
  EXPECT_EQ(finished.code, 0) << finished.errors;
  const auto job = show(1);
  EXPECT_EQ(job["attempts"], 2) << job.dump(1);
  EXPECT_EQ(job["lost_attempts"], 0) << job.dump(1);
  // The same answer for a token that is none.
  write_file_atomic(token_file, "stale");
  const Finished refused =
      run_program({"queue", "run", "--queue", queue(), "--engine", "slurm", "--slurm-rest",
                   "http://" + address, "--slurm-token-file", token_file, "--until-empty"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.errors.find("slurmrestd"), std::string::npos) << refused.errors;
}

// The ranks of one run, started by srun.
TEST_F(SlurmTest, a_step_of_srun_trains_as_one_process_does) {
  if (find_program("srun").empty())
    GTEST_SKIP() << "srun is not installed (slurm-client of the distribution)";
  const std::string config = write_tiny_config(folder, 20);
  const auto loss = [&](const std::string& run) {
    return nlohmann::json::parse(read_file(folder / run / "summary.json"))["train_loss"].get<double>();
  };
  const auto arguments = [&](const std::string& run) {
    return std::vector<std::string>{"train",    config, "--run",     (folder / run).string(),
                                    "--device", "cpu",  "--threads", "1"};
  };
  const Finished alone = run_program(arguments("one"));
  ASSERT_EQ(alone.code, 0) << alone.errors;
  std::string command = concat("timeout 100 srun --ntasks 2 --mpi=none ", program_under_test());
  for (const std::string& argument : arguments("two")) command += concat(" '", argument, "'");
  const std::string log = (folder / "log").string();
  ASSERT_EQ(std::system(concat(command, " >", log, " 2>&1").c_str()), 0) << read_file(log);
  EXPECT_NE(read_file(log).find("Slurm: rank 0 of 2, local rank 0 of 2, rendezvous at 127.0.0.1:"),
            std::string::npos)
      << read_file(log);
  EXPECT_NEAR(loss("two"), loss("one"), 1e-4 * loss("one"));
}

TEST_F(SlurmTest, a_cluster_that_is_out_of_reach_is_named) {
  // The cluster's configuration with a port where nobody listens. (Without any, Slurm asks the network for
  // one.)
  std::string conf = read_file(folder / "slurm.conf");
  const size_t port = conf.find("SlurmctldPort=") + 14;
  conf.replace(port, conf.find('\n', port) - port, std::to_string(free_port()));
  write_file_atomic(folder / "other.conf", conf);
  ::setenv("SLURM_CONF", (folder / "other.conf").c_str(), 1);
  const Finished refused =
      run_program({"queue", "run", "--queue", queue(), "--engine", "slurm", "--until-empty"});
  EXPECT_EQ(refused.code, 2);
  EXPECT_NE(refused.errors.find("Slurm's controller is out of reach"), std::string::npos) << refused.errors;
}

}  // namespace
}  // namespace moebius
