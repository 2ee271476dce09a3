// What moves data between the processes of a run: chosen from the config and the GPUs that they have.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "config/train_config.h"

namespace moebius::parallel {

class CollectiveWatch;
class Rendezvous;

struct Transport {
  // gloo: between hosts; tensors of a GPU go through host memory (staged_communicator.h).
  enum class Kind : uint8_t { gloo, nccl };
  Kind kind = Kind::gloo;
  at::Device device = at::kCPU;      // of this process
  CollectiveWatch* watch = nullptr;  // for NCCL; outlives the mesh
  int ranks_on_device = 1;           // that share the device, where it is a GPU
};

// UserError when what the config asks for cannot serve several processes on such a device.
void check_backend(const config::RunConfig& config, bool on_cuda);
// UserError when NCCL is asked for and this machine has fewer GPUs than processes.
void check_gpu_count(const config::RunConfig& config, int num_processes, int num_gpus);

// `gpus`: what each rank computes on, in their order, as gpu_name gives it. UserError, the same on all ranks,
// when NCCL is asked for and two of them share a GPU, or some have none.
Transport choose_transport(const std::string& backend, const std::vector<std::string>& gpus, int rank);

// A name that no other GPU of any machine has: "0000:3b:00.0 of <number of the machine's boot>"; empty for
// the CPU.
std::string gpu_name(at::Device device);

// Tells the others what this rank computes on, and what they do. All ranks at the same time.
std::vector<std::string> exchange_gpus(Rendezvous& rendezvous, at::Device device);

// "NCCL between 4 GPUs"
std::string describe(const Transport& transport, int num_ranks);

}  // namespace moebius::parallel
