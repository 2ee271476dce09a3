// Which of the processes of a run this one is, as those say who start it: torchrun, Slurm's srun, Open MPI's
// mpirun, or another MPI that speaks PMI (MPICH, Intel MPI).
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

namespace moebius::parallel {

enum class Launcher : uint8_t { none, torchrun, open_mpi, slurm, pmi };

struct Environment {
  Launcher launcher = Launcher::none;
  int rank = 0, world_size = 1;
  int local_rank = 0;  // on its machine: which device it takes
  int local_size = 1;  // ranks on its machine, as far as the launcher says
  std::string host;    // where rank 0 serves the rendezvous
  int port = 0;

  bool is_distributed() const { return world_size > 1; }
};

// The value of an environment variable; nothing when it is not set, or empty.
using Variables = std::function<std::optional<std::string>(const std::string& name)>;
std::optional<std::string> process_variable(const std::string& name);

// In this order:
//   torchrun  RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
//   Open MPI  OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK, _LOCAL_SIZE
//   Slurm     SLURM_PROCID, SLURM_STEP_NUM_TASKS (or SLURM_NTASKS), SLURM_LOCALID, SLURM_STEP_NODELIST; only
//   within a
//             step: the batch script itself has some of them too
//   PMI       PMI_RANK, PMI_SIZE, MPI_LOCALRANKID, MPI_LOCALNRANKS
// MASTER_ADDR and MASTER_PORT go before what is derived: the first host of the step, or 127.0.0.1 where all
// ranks are on one machine, and a port from the number of the job. `parent`: number of the parent process,
// which all ranks share that one PMI started on one machine.
//
// UserError for ranks that are no numbers or out of range, and for a rendezvous address that nobody gives.
Environment detect_environment(const Variables& variables, int64_t parent);
Environment detect_environment();

// "Slurm: rank 1 of 4, local rank 1 of 2, rendezvous at node3:21542"
std::string describe(const Environment& environment);

// The first host of Slurm's list: "node3" of "node[3-5,8],gpu1".
std::string first_host(const std::string& node_list);

}  // namespace moebius::parallel
