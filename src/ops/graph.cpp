#include "ops/graph.h"

#include <utility>

#include "ops/device.h"

namespace moebius::ops {
namespace {

// A graph of the plug-in.
using Handle = std::shared_ptr<void>;

class CudaGraph final : public Graph {
 public:
  explicit CudaGraph(Handle handle) : handle_(std::move(handle)) {}
  void replay() override { cuda_plugin()->graph_replay(handle_.get()); }

 private:
  Handle handle_;
};

class CudaGraphRecorder final : public GraphRecorder {
 public:
  explicit CudaGraphRecorder(at::Device device) : device_(device) {
    cuda_plugin()->use_own_stream(device.index());
  }

  std::unique_ptr<Graph> record(const std::function<void()>& body) override {
    void* handle = cuda_plugin()->graph_begin(device_.index(), newest_.get());
    try {
      body();
    } catch (...) {
      cuda_plugin()->graph_abort(handle);
      throw;
    }
    try {
      cuda_plugin()->graph_end(handle);
    } catch (...) {
      cuda_plugin()->graph_abort(handle);
      throw;
    }
    newest_ = Handle(handle, [](void* graph) { cuda_plugin()->graph_free(graph); });
    return std::make_unique<CudaGraph>(newest_);
  }

 private:
  at::Device device_;
  Handle newest_;  // whose memory the next one shares
};

}  // namespace

std::unique_ptr<GraphRecorder> make_graph_recorder(at::Device device) {
  if (device.is_cpu()) return nullptr;
  return std::make_unique<CudaGraphRecorder>(device);
}

}  // namespace moebius::ops
