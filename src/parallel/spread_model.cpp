#include "parallel/spread_model.h"

#include "moe/moe_feed_forward.h"
#include "parallel/expert_dispatcher.h"
#include "parallel/grid_axis.h"
#include "parallel/mesh.h"
#include "parallel/ring_attention.h"
#include "parallel/stage_link.h"
#include "parallel/tensor_axis.h"

namespace moebius::parallel {

std::unique_ptr<nn::Decoder> make_spread_decoder(const config::RunConfig& config, const Mesh& mesh) {
  Communicator &ep = mesh.on(Axis::ep), &tp = mesh.on(Axis::tp), &row = mesh.on(Axis::tp_row),
               &column = mesh.on(Axis::tp_column);
  std::shared_ptr<const moe::TokenDispatcher> dispatcher;
  const int64_t experts = config.model.moe.experts, chunks = config.parallel.ep_chunks;
  if (Communicator& rail = mesh.on(Axis::ep_rail); rail.size() > 1) {
    // Between machines first, to the rank with the same place there; then within.
    auto within = std::make_shared<ExpertDispatcher>(mesh.on(Axis::ep_node), experts / rail.size(), 1);
    dispatcher = std::make_shared<ExpertDispatcher>(rail, experts, chunks, std::move(within));
  } else if (ep.size() > 1) {
    Communicator& sizes = mesh.on(Axis::ep_sizes);
    dispatcher =
        std::make_shared<ExpertDispatcher>(ep, experts, chunks, nullptr, sizes.size() > 1 ? &sizes : nullptr);
  }
  std::shared_ptr<const nn::TensorAxis> axis;
  nn::Shards shards{.ep = {ep.size(), ep.rank()}, .tp = {tp.size(), tp.rank()}};
  if (row.size() > 1) {
    axis = make_grid_axis(tp, row, column);
    shards.tp = axis->place();
    shards.grid = axis->tokens();
  } else if (tp.size() > 1) {
    axis = make_tensor_axis(tp, config.parallel.sequence_parallel);
  }
  std::shared_ptr<const nn::ContextAxis> context;
  if (Communicator& cp = mesh.on(Axis::cp); cp.size() > 1) context = make_context_axis(cp);
  std::unique_ptr<nn::Decoder> decoder = moe::make_decoder(
      config.model, std::move(dispatcher), std::move(axis), make_pieces(config, mesh), std::move(context));
  decoder->params().split(shards);
  return decoder;
}

}  // namespace moebius::parallel
