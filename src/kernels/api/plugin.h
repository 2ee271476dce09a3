// What libmoebius_cuda.so offers to the binary: its kernels and the few device services that are not tensor
// operators. The binary finds it by name, checks `abi_version`, and never links it (docs/architecture.md,
// "The CUDA plug-in").
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/api/table.h"

namespace moebius::kernels {

inline constexpr int kPluginAbiVersion = 7;
inline constexpr char kPluginEntry[] = "moebius_cuda_plugin";

struct DeviceInfo {
  char name[256];
  int compute_major, compute_minor;
  int num_multiprocessors;
  int64_t total_memory_bytes, free_memory_bytes;
  int driver_version, runtime_version;  // as CUDA encodes them: 1000 * major + 10 * minor
  char pci_bus_id[16];                  // "0000:3b:00.0"; by it the sensors find the card (energy/nvml.h)
};

struct DeviceMemory {
  int64_t allocated_bytes;       // by tensors, now
  int64_t peak_allocated_bytes;  // by tensors, since the last reset
  int64_t reserved_bytes;        // held by the caching allocator
};

// A group of ranks, one GPU each, that exchange data through NCCL.
struct NcclGroup {
  const void* store;  // a c10::intrusive_ptr<c10d::Store> of libtorch that all ranks of the group share
  int rank, size;
  int device;  // of this rank
};

struct Plugin {
  int abi_version;  // first member for ever
  const KernelTable* kernels;
  int (*device_count)();
  // false when the device does not exist.
  bool (*device_info)(int device, DeviceInfo*);
  DeviceMemory (*device_memory)(int device);
  void (*reset_peak_memory)(int device);
  Stream (*current_stream)(int device);  // libtorch's current stream, a cudaStream_t
  void (*synchronize)(int device);
  // Chooses the backend of scaled-dot-product attention for the process: cuDNN first where it supports the
  // shape.
  void (*prefer_cudnn_attention)(bool on);
  // From here on this thread queues its work on a stream of its own: libtorch's default stream cannot be
  // recorded. Waits for the device first.
  void (*use_own_stream)(int device);
  // Graphs (ops/graph.h). begin: what this thread and libtorch's backward threads queue on the current stream
  // is recorded instead of run; memory comes from a pool that is the graph's, or that of
  // `shares_memory_with`, a graph that is never in use at the same time, or null. end: makes it ready to run;
  // abort: forgets it, whatever state it is in. Errors are exceptions of libtorch.
  void* (*graph_begin)(int device, void* shares_memory_with);
  void (*graph_end)(void* graph);
  void (*graph_abort)(void* graph);
  void (*graph_replay)(void* graph);
  void (*graph_free)(void* graph);
  // Makes the process group, without exchanging anything yet: a c10d::Backend of libtorch whose reference the
  // caller takes over (c10::intrusive_ptr::reclaim). It neither logs nor ends the process when a rank does
  // not come: that is for the caller to watch over. Errors are exceptions of libtorch.
  void* (*nccl_group)(const NcclGroup& group);
  // Makes the device that of this thread.
  void (*set_device)(int device);
};

using PluginEntry = const Plugin* (*)();

}  // namespace moebius::kernels
