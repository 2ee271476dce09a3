// Work that is recorded once and run again as a whole: no launch costs anything on the host the second time.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <memory>

namespace moebius::ops {

class Graph {
 public:
  virtual ~Graph() = default;
  // Queues all of it again: the same operators on the same memory. What the body computed on the host (sizes,
  // Python-like numbers) is as it was when it was recorded.
  virtual void replay() = 0;
};

class GraphRecorder {
 public:
  virtual ~GraphRecorder() = default;
  // Records what `body` queues on the device, without running it. Tensors that the body makes lose their
  // memory to the graphs of this recorder, which share it: results must be copied to tensors from outside.
  // Throws what body or driver throw when something in it cannot be recorded; then nothing has been run.
  virtual std::unique_ptr<Graph> record(const std::function<void()>& body) = 0;
};

// CUDA graphs on this device; null on the CPU. This thread's work goes to a stream of its own from then on.
std::unique_ptr<GraphRecorder> make_graph_recorder(at::Device device);

}  // namespace moebius::ops
