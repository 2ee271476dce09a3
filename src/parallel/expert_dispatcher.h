// Expert parallelism: the experts of each routed layer are split over the ranks of an axis in blocks of
// neighbours, rank r holding experts [r * E/n, (r + 1) * E/n), and tokens travel to them and back by
// all-to-all (parallel/token_trip.h). (Lepikhin et al. 2020, "GShard"; a row per token and rank rather than
// per token and expert: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 3.2.2.)
//
// Router, attention and everything else stay as they are: each rank routes its own tokens over all E experts,
// so that choices, weights, balance losses and load statistics are those of data parallelism.
//
// Gradients. The ranks of the ep axis hold different tokens, so for everything but experts it is an axis of
// data; the experts of a rank have already seen the tokens of all ranks of its ep axis. The loss being
// normalised by the targets of the whole step on all ranks, gradients are therefore summed, and never
// averaged, over
//   ParamClass::expert   the ranks that hold the same block of experts: the data axes without ep
//   all other classes    all ranks that hold different tokens: the data axes with ep
//
// Two levels (node-limited exchange; DeepSeek-AI 2024, section 3.2.2). Between machines the links are slower:
// one dispatcher over the ranks that have the same place on each machine, whose blocks of experts are the
// machines', and behind it, as `inner`, one over the ranks of a machine. A row then crosses between machines
// once per token and machine, however many ranks hold experts of the token there; what comes back is the sum
// of the machine. The ranks of a machine are neighbours in ep, so that experts lie where they do with one
// level.
//
// Results. Routing is exact. A token's output is the sum over its ranks, in the order of its slots, of the
// sums of each rank's experts: bit for bit that of moe::LocalDispatcher where all experts of a token are on
// one rank (with top_k = 1 always), else equal up to one rounding per rank, in the dtype of x. Gradients of
// experts are, in one chunk, sums in the same order as those of one process over the ranks' tokens one after
// the other; with more chunks, sums of sums. The capacity limit (moe.capacity_factor) counts each rank's
// tokens by themselves.
#pragma once

#include <memory>

#include "moe/dispatcher.h"
#include "parallel/communicator.h"
#include "parallel/token_trip.h"

namespace moebius::parallel {

class ExpertDispatcher final : public moe::TokenDispatcher {
 public:
  // `ep` outlives the dispatcher and every graph made with it. Tokens travel in num_chunks pieces, so that
  // the exchanges of one hide behind the products of another; every chunk reads the experts' weights again
  // and adds to their gradients. The first chunk hides behind `meanwhile` (the shared experts). num_experts
  // is a multiple of the axis' size (CHECK; the config says it to the user).
  // inner: computes what arrives, in place of the experts of this rank.
  // sizes: connections of their own among the same ranks for the sizes of exchanges, which the host waits
  // for: they do not queue behind the rows of another layer pass. Null: `ep` itself.
  ExpertDispatcher(Communicator& ep, int64_t num_experts, int64_t num_chunks,
                   std::shared_ptr<const moe::TokenDispatcher> inner = nullptr,
                   Communicator* sizes = nullptr);

  // Passes its turn (turns.h) where it would wait for tokens: another pass hides the exchanges then. A
  // collective: every rank of the axis calls it for the same layer, with or without tokens. `experts` are
  // this rank's. Throws CommunicationFailed; so does the backward pass.
  at::Tensor apply(const at::Tensor& x_TD, const ops::Routing& routing, const moe::ExpertWeights& experts,
                   bool recompute, const std::function<void()>& meanwhile) const override;

  // Since the start.
  const ExpertTraffic& traffic() const { return *traffic_; }

 private:
  std::vector<Trip> plan(const at::Tensor& x_TD, const ops::Routing& routing,
                         const std::vector<int64_t>& sizes) const;

  Communicator &ep_, &sizes_;
  int64_t num_experts_, num_local_, num_chunks_;
  std::shared_ptr<ExpertTraffic> traffic_ = std::make_shared<ExpertTraffic>();
  bool is_last_;  // what arrives is for this rank's experts
  std::shared_ptr<const moe::TokenDispatcher> inner_;
};

}  // namespace moebius::parallel
