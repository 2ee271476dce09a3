#include "parallel/environment.h"

#include <gtest/gtest.h>

#include <map>

#include "base/error.h"

namespace moebius::parallel {
namespace {

using Map = std::map<std::string, std::string>;

Environment detected(const Map& map) {
  return detect_environment(
      [&](const std::string& name) -> std::optional<std::string> {
        const auto found = map.find(name);
        return found == map.end() ? std::nullopt : std::optional(found->second);
      },
      4711);
}

std::string complaint(const Map& map) {
  try {
    detected(map);
  } catch (const UserError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(EnvironmentTest, nothing_is_one_process) {
  EXPECT_FALSE(detected({}).is_distributed());
  EXPECT_EQ(describe(detected({})), "no launcher: one process");
}

TEST(EnvironmentTest, torchrun) {
  const Map map{{"RANK", "5"},         {"WORLD_SIZE", "8"},
                {"LOCAL_RANK", "1"},   {"LOCAL_WORLD_SIZE", "4"},
                {"MASTER_ADDR", "n0"}, {"MASTER_PORT", "29501"}};
  EXPECT_EQ(describe(detected(map)), "torchrun: rank 5 of 8, local rank 1 of 4, rendezvous at n0:29501");
}

TEST(EnvironmentTest, a_step_of_slurm) {
  const Map one{{"SLURM_PROCID", "1"},  {"SLURM_STEP_NUM_TASKS", "2"},    {"SLURM_STEP_NUM_NODES", "1"},
                {"SLURM_LOCALID", "1"}, {"SLURM_STEP_NODELIST", "node1"}, {"SLURM_JOB_ID", "77"},
                {"SLURM_STEP_ID", "0"}};
  const Environment local = detected(one);
  EXPECT_EQ(local.launcher, Launcher::slurm);
  EXPECT_EQ(local.host, "127.0.0.1");
  EXPECT_EQ(local.local_size, 2);
  EXPECT_GE(local.port, 12000);
  EXPECT_LT(local.port, 32000);
  Map two = one;
  two["SLURM_STEP_NUM_NODES"] = "2";
  two["SLURM_STEP_NODELIST"] = "gpu[07-09,12]";
  EXPECT_EQ(detected(two).host, "gpu07");
  EXPECT_EQ(detected(two).port, local.port);
  two["SLURM_STEP_ID"] = "1";
  EXPECT_NE(detected(two).port, local.port);
  // The batch script itself is no step, and one process.
  Map script = one;
  script.erase("SLURM_STEP_ID");
  EXPECT_FALSE(detected(script).is_distributed());
}

TEST(EnvironmentTest, hosts_of_slurm) {
  EXPECT_EQ(first_host("node1"), "node1");
  EXPECT_EQ(first_host("node1,node2"), "node1");
  EXPECT_EQ(first_host("node[3-5,8],gpu1"), "node3");
  EXPECT_EQ(first_host("n[01,04]-ib,x"), "n01-ib");
  EXPECT_EQ(first_host("rack[7]"), "rack7");
}

TEST(EnvironmentTest, mpi_on_one_machine_needs_no_address) {
  const Map map{{"OMPI_COMM_WORLD_RANK", "0"},
                {"OMPI_COMM_WORLD_SIZE", "2"},
                {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                {"PMIX_NAMESPACE", "3486253057"},
                // what a batch script of Slurm hands down to mpirun
                {"SLURM_PROCID", "0"},
                {"SLURM_STEP_ID", "0"},
                {"SLURM_STEP_NUM_TASKS", "1"}};
  EXPECT_EQ(detected(map).launcher, Launcher::open_mpi);
  EXPECT_EQ(detected(map).host, "127.0.0.1");
  const Map pmi{{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};
  EXPECT_EQ(detected(pmi).launcher, Launcher::pmi);
  EXPECT_EQ(detected(pmi).rank, 1);
  EXPECT_GT(detected(pmi).port, 0);
}

TEST(EnvironmentTest, what_is_missing_is_named) {
  EXPECT_EQ(complaint({{"RANK", "1"}}),
            "the environment variable RANK is set, but WORLD_SIZE is not; set both, or none of them for a "
            "run of one "
            "process");
  EXPECT_EQ(complaint({{"RANK", "x"}, {"WORLD_SIZE", "2"}}),
            "the environment variable RANK is 'x', which is no number of a rank; set it to a whole number "
            "from 0 on, or "
            "unset it");
  EXPECT_EQ(complaint({{"RANK", "2"}, {"WORLD_SIZE", "2"}}),
            "RANK is 2, but WORLD_SIZE is 2; ranks count from 0 to WORLD_SIZE - 1");
  EXPECT_EQ(
      complaint({{"RANK", "1"}, {"WORLD_SIZE", "2"}}),
      "torchrun says that this is rank 1 of 2, but there is no address where the ranks meet; set MASTER_ADDR "
      "to "
      "the host of rank 0 (127.0.0.1 on one machine) and MASTER_PORT to a free port of it, for all ranks");
  EXPECT_EQ(complaint({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}}),
            "torchrun says that this is rank 1 of 2 with the rendezvous at a, but the port is not given; set "
            "MASTER_PORT to a free port of that host, from 1 to 65535, the same for all ranks");
  EXPECT_NE(
      complaint(
          {{"OMPI_COMM_WORLD_RANK", "1"}, {"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}})
          .find("Open MPI says that this is rank 1 of 4, but there is no address"),
      std::string::npos);
}

}  // namespace
}  // namespace moebius::parallel
