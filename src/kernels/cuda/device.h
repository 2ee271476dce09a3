// What the launchers need to know of the device, and their scratch memory.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace moebius::kernels::cuda {

// Of the current device.
int num_multiprocessors();
int compute_major();  // compute capability: 9 for Hopper

// Scratch for the launches of one kernel call on this stream: at least `bytes`, 256-byte aligned, contents
// undefined. One buffer per device and stream, which only grows; a replaced buffer is never freed, so that
// queued work and captured graphs keep theirs (sizes double, so all of them together are less than twice the
// last). Calls on one stream run one after the other, so they may share it. A graph uses the buffer of the
// stream it was captured on: do not replay it while other work runs on that stream. Safe during capture and
// from several threads.
void* scratch(size_t bytes, cudaStream_t stream);

template <class T>
T* scratch_of(size_t count, cudaStream_t stream) {
  return static_cast<T*>(scratch(count * sizeof(T), stream));
}

}  // namespace moebius::kernels::cuda
