#include "parallel/stage_link.h"

#include <ATen/core/grad_mode.h>

#include <deque>
#include <utility>

#include "base/check.h"
#include "parallel/mesh.h"
#include "tune/layer_split.h"

namespace moebius::parallel {
namespace {

class MeshLink final : public nn::StageLink {
 public:
  MeshLink(const Mesh& mesh, int stage, int stages) : mesh_(mesh), stage_(stage), stages_(stages) {}

  void receive(int piece, const at::Tensor& out) const override {
    const int from = (piece + stages_ - 1) % stages_;
    way_between(mesh_, from, stage_).receive(out, from).wait();
  }

  void send(int piece, const at::Tensor& x) const override {
    const at::NoGradGuard no_grad;
    while (!sent_.empty() && sent_.front().is_done()) {
      sent_.front().wait();
      sent_.pop_front();
    }
    const int to = piece % stages_;
    sent_.push_back(way_between(mesh_, stage_, to).send(x.detach().contiguous(), to));
  }

  void share_last(const at::Tensor& inout) const override {
    while (!sent_.empty()) {
      sent_.front().wait();
      sent_.pop_front();
    }
    mesh_.on(Axis::pp).broadcast(inout, stages_ - 1).wait();
  }

 private:
  const Mesh& mesh_;
  int stage_, stages_;
  mutable std::deque<Pending> sent_;  // keeps what is on its way
};

}  // namespace

void connect_stages(const Mesh& mesh, int stages, bool in_a_ring) {
  for (int stage = 0; stage < (in_a_ring ? stages : stages - 1); ++stage) {
    const int next = (stage + 1) % stages;
    way_between(mesh, stage, next).connect(stage, next);
    way_between(mesh, next, stage).connect(next, stage);
  }
}

Communicator& way_between(const Mesh& mesh, int from, int to) {
  MOEBIUS_CHECK(from != to, "a transfer from stage ", from, " to itself");
  return mesh.on(from < to ? Axis::pp : Axis::pp_back);
}

std::vector<nn::LayerRange> layers_of_pieces(const config::RunConfig& config) {
  const config::ParallelConfig& parallel = config.parallel;
  const std::vector<int64_t> counts =
      !parallel.pp_layers.empty()
          ? parallel.pp_layers
          : tune::split_layers(config.model, config.train.sequence, parallel.pp * parallel.pp_chunks);
  std::vector<nn::LayerRange> ranges;
  int64_t begin = 0;
  for (const int64_t count : counts) {
    ranges.push_back({begin, begin + count});
    begin += count;
  }
  MOEBIUS_CHECK_EQ(begin, config.model.layers, "layers of the pieces");
  return ranges;
}

tune::PipelineSchedule schedule_of(const config::RunConfig& config, int64_t num_micro) {
  const config::ParallelConfig& parallel = config.parallel;
  if (parallel.pp == 1) return tune::make_turns(num_micro, parallel.ep_pairs ? 2 : 1);
  return tune::make_schedule(tune::pipeline_kind(parallel.pp_schedule), static_cast<int>(parallel.pp),
                             static_cast<int>(parallel.pp_chunks), num_micro);
}

std::shared_ptr<const nn::DecoderPieces> make_pieces(const config::RunConfig& config, const Mesh& mesh) {
  const int stages = mesh.layout().size(Axis::pp);
  if (stages == 1) return nullptr;
  const int stage = mesh.layout().index(Axis::pp, mesh.rank());
  connect_stages(mesh, stages, config.parallel.pp_chunks > 1);
  auto pieces = std::make_shared<nn::DecoderPieces>();
  pieces->layers = layers_of_pieces(config);
  pieces->stage = stage;
  pieces->stages = stages;
  pieces->link = std::make_shared<MeshLink>(mesh, stage, stages);
  return pieces;
}

}  // namespace moebius::parallel
