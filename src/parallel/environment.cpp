#include "parallel/environment.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>

#include "base/concat.h"
#include "base/error.h"
#include "base/hash.h"

namespace moebius::parallel {
namespace {

constexpr const char* kLoopback = "127.0.0.1";

const char* name_of(Launcher launcher) {
  switch (launcher) {
    case Launcher::torchrun:
      return "torchrun";
    case Launcher::open_mpi:
      return "Open MPI";
    case Launcher::slurm:
      return "Slurm";
    case Launcher::pmi:
      return "PMI";
    case Launcher::none:
      break;
  }
  return "no launcher";
}

class Reader {
 public:
  explicit Reader(const Variables& variables) : variables_(variables) {}

  bool has(const std::string& name) const { return variables_(name).has_value(); }
  std::optional<std::string> text(const std::string& name) const { return variables_(name); }

  std::optional<int> number(const std::string& name) const {
    const std::optional<std::string> value = variables_(name);
    if (!value) return std::nullopt;
    int result = 0;
    const char* const end = value->data() + value->size();
    const auto [stop, error] = std::from_chars(value->data(), end, result);
    if (error != std::errc() || stop != end || result < 0)
      throw_user_error("the environment variable ", name, " is '", *value,
                       "', which is no number of a rank; set it to "
                       "a whole number from 0 on, or unset it");
    return result;
  }

  // Rank and number of ranks from these two variables.
  void ranks(Environment& environment, const std::string& rank, const std::string& size) const {
    const std::optional<int> mine = number(rank), all = number(size);
    if (!mine || !all)
      throw_user_error("the environment variable ", mine ? rank : size, " is set, but ", mine ? size : rank,
                       " is not; set both, or none of them for a run of one process");
    if (*all < 1 || *mine >= *all)
      throw_user_error(rank, " is ", *mine, ", but ", size, " is ", *all, "; ranks count from 0 to ", size,
                       " - 1");
    environment.rank = *mine;
    environment.world_size = *all;
  }

 private:
  const Variables& variables_;
};

// Below the ports that the kernel hands out (32768 on), above those of common services.
int port_of(const std::string& job) {
  return 12000 + static_cast<int>(hash64(job) % 20000);
}

void read_torchrun(const Reader& reader, Environment& environment) {
  environment.launcher = Launcher::torchrun;
  reader.ranks(environment, "RANK", "WORLD_SIZE");
  environment.local_rank = reader.number("LOCAL_RANK").value_or(environment.rank);
  environment.local_size = reader.number("LOCAL_WORLD_SIZE").value_or(1);
}

void read_open_mpi(const Reader& reader, Environment& environment) {
  environment.launcher = Launcher::open_mpi;
  reader.ranks(environment, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
  environment.local_rank = reader.number("OMPI_COMM_WORLD_LOCAL_RANK").value_or(environment.rank);
  environment.local_size = reader.number("OMPI_COMM_WORLD_LOCAL_SIZE").value_or(1);
  if (environment.local_size == environment.world_size) environment.host = kLoopback;
  for (const char* job : {"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid"})
    if (const auto text = reader.text(job); text && environment.port == 0) environment.port = port_of(*text);
}

void read_slurm(const Reader& reader, Environment& environment) {
  environment.launcher = Launcher::slurm;
  reader.ranks(environment, "SLURM_PROCID",
               reader.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS");
  environment.local_rank = reader.number("SLURM_LOCALID").value_or(environment.rank);
  if (reader.number("SLURM_STEP_NUM_NODES") == 1 || reader.number("SLURM_NNODES") == 1) {
    environment.host = kLoopback;
    environment.local_size = environment.world_size;
  } else if (const auto nodes = reader.text("SLURM_STEP_NODELIST")) {
    environment.host = first_host(*nodes);
  } else if (const auto all_nodes = reader.text("SLURM_JOB_NODELIST")) {
    environment.host = first_host(*all_nodes);
  }
  if (const auto job = reader.text("SLURM_JOB_ID"))
    environment.port = port_of(concat(*job, ".", reader.text("SLURM_STEP_ID").value_or("")));
}

void read_pmi(const Reader& reader, int64_t parent, Environment& environment) {
  environment.launcher = Launcher::pmi;
  reader.ranks(environment, "PMI_RANK", "PMI_SIZE");
  environment.local_rank = reader.number("MPI_LOCALRANKID").value_or(environment.rank);
  environment.local_size = reader.number("MPI_LOCALNRANKS").value_or(1);
  if (environment.local_size == environment.world_size) {
    environment.host = kLoopback;
    environment.port = port_of(concat("parent ", parent));
  }
}

}  // namespace

std::optional<std::string> process_variable(const std::string& name) {
  const char* const value = std::getenv(name.c_str());
  if (value == nullptr || *value == 0) return std::nullopt;
  return value;
}

std::string first_host(const std::string& node_list) {
  const size_t end = node_list.find_first_of(",[");
  if (end == std::string::npos || node_list[end] == ',') return node_list.substr(0, end);
  const size_t close = node_list.find(']', end), number_end = node_list.find_first_of(",-]", end + 1);
  if (close == std::string::npos) return node_list;
  const size_t suffix_end = node_list.find(',', close);
  return concat(
      node_list.substr(0, end), node_list.substr(end + 1, number_end - end - 1),
      node_list.substr(close + 1, suffix_end == std::string::npos ? suffix_end : suffix_end - close - 1));
}

Environment detect_environment(const Variables& variables, int64_t parent) {
  const Reader reader(variables);
  Environment environment;
  if (reader.has("RANK") || reader.has("WORLD_SIZE")) {
    read_torchrun(reader, environment);
  } else if (reader.has("OMPI_COMM_WORLD_RANK")) {
    read_open_mpi(reader, environment);
  } else if (reader.has("SLURM_PROCID") && reader.has("SLURM_STEP_ID")) {
    read_slurm(reader, environment);
  } else if (reader.has("PMI_RANK")) {
    read_pmi(reader, parent, environment);
  }
  if (!environment.is_distributed()) return environment;
  if (const auto host = reader.text("MASTER_ADDR")) environment.host = *host;
  if (const auto port = reader.number("MASTER_PORT")) environment.port = *port;
  if (environment.host.empty())
    throw_user_error(
        name_of(environment.launcher), " says that this is rank ", environment.rank, " of ",
        environment.world_size,
        ", but there is no address where the ranks meet; set MASTER_ADDR to the "
        "host of rank 0 (127.0.0.1 on one machine) and MASTER_PORT to a free port of it, for all ranks");
  if (environment.port == 0 || environment.port > 65535)
    throw_user_error(
        name_of(environment.launcher), " says that this is rank ", environment.rank, " of ",
        environment.world_size, " with the rendezvous at ", environment.host, ", but the port is ",
        environment.port == 0 ? "not given" : "no port",
        "; set MASTER_PORT to a free port of that host, from 1 to 65535, the same for all ranks");
  return environment;
}

Environment detect_environment() {
  return detect_environment(process_variable, ::getppid());
}

std::string describe(const Environment& environment) {
  if (!environment.is_distributed()) return concat(name_of(environment.launcher), ": one process");
  return concat(name_of(environment.launcher), ": rank ", environment.rank, " of ", environment.world_size,
                ", local rank ", environment.local_rank, " of ", environment.local_size, ", rendezvous at ",
                environment.host, ":", environment.port);
}

}  // namespace moebius::parallel
