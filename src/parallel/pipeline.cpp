#include "parallel/pipeline.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>

#include <map>
#include <utility>

#include "base/check.h"
#include "parallel/stage_link.h"
#include "parallel/turns.h"
#include "telemetry/trace.h"

namespace moebius::parallel {
namespace {

using tune::PipelinePass;
using tune::PipelineTask;
using tune::PipelineTransfer;

class Stage {
 public:
  Stage(const tune::PipelineSchedule& schedule, const Mesh* mesh, const PipelineWork& work, bool reads_ahead)
      : mesh_(mesh),
        work_(work),
        reads_ahead_(reads_ahead),
        stage_(mesh == nullptr ? 0 : mesh->layout().index(Axis::pp, mesh->rank())),
        together_(static_cast<size_t>(schedule.together)),
        tasks_(schedule.tasks[static_cast<size_t>(stage_)]) {
    for (const PipelineTransfer& transfer : schedule.transfers) {
      if (transfer.from == stage_) outgoing_[transfer.after] = &transfer;
      if (transfer.to != stage_) continue;
      Channel& channel = channels_[transfer.from];
      incoming_[transfer.before] = {&channel, channel.transfers.size()};
      channel.transfers.push_back(&transfer);
    }
  }

  void run() {
    size_t last = tasks_.size();
    while (last > 0 && tasks_[last - 1].pass == PipelinePass::forward) --last;
    for (size_t i = 0; i < tasks_.size();) {
      if (together_ > 1) {
        i = run_turns(i, last);
        continue;
      }
      post(i);
      if (reads_ahead_) post(i + 1);
      run_task(i, i + 1 == last);
      ++i;
    }
    const telemetry::Span span("wait for sends", "parallel");
    for (Pending& each : sends_) each.wait();
    MOEBIUS_CHECK(held_.empty() && arriving_.empty(), held_.size(), " micro-batches were not passed back");
  }

 private:
  struct Held {
    at::Tensor input;
    PieceResult result;
  };
  struct Arriving {
    at::Tensor values;
    Pending pending;
  };

  // What comes from one stage, in the order in which that sends it: receives are begun in this order,
  // whichever of them is waited for first.
  struct Channel {
    std::vector<const PipelineTransfer*> transfers;
    size_t num_posted = 0;
  };

  // Begins the receive that task i needs, behind those that were sent before it.
  void post(size_t i) {
    const auto found = incoming_.find(i);
    if (found == incoming_.end()) return;
    Channel& channel = *found->second.first;
    for (; channel.num_posted <= found->second.second; ++channel.num_posted) {
      const PipelineTransfer& transfer = *channel.transfers[channel.num_posted];
      Arriving& arriving = arriving_[transfer.before];
      arriving.values =
          at::empty(work_.stream_sizes(tasks_[transfer.before].micro_batch), work_.stream_options);
      arriving.pending = way_between(*mesh_, transfer.from, stage_).receive(arriving.values, transfer.from);
    }
  }

  at::Tensor arrived(size_t i) {
    const auto found = arriving_.find(i);
    if (found == arriving_.end()) return {};
    const telemetry::Span span("wait for stage", "parallel", tasks_[i].micro_batch);
    found->second.pending.wait();
    at::Tensor values = std::move(found->second.values);
    arriving_.erase(found);
    return values;
  }

  void send(size_t i, const at::Tensor& values) {
    const auto found = outgoing_.find(i);
    if (found == outgoing_.end()) return;
    while (!sends_.empty() && sends_.front().is_done()) {
      sends_.front().wait();
      sends_.erase(sends_.begin());
    }
    const at::NoGradGuard no_grad;
    const int to = found->second->to;
    sends_.push_back(way_between(*mesh_, stage_, to).send(values.detach().contiguous(), to));
  }

  void run_task(size_t i, bool is_last) {
    const PipelineTask& task = tasks_[i];
    const std::pair<int, int64_t> key = key_of(i);
    switch (task.pass) {
      case PipelinePass::forward: {
        at::Tensor input = arrived(i);
        if (input.defined()) input.requires_grad_(true);
        PieceResult result = work_.forward(task, input);
        send(i, result.stream);
        held_[key] = {std::move(input), std::move(result)};
        return;
      }
      case PipelinePass::backward: {
        const at::Tensor gradient = arrived(i);
        Held held = std::move(held_.at(key));
        held_.erase(key);
        work_.backward(task, is_last, [&] { differentiate(held, gradient); });
        if (held.input.defined()) send(i, held.input.grad());
        return;
      }
      case PipelinePass::weight:
        work_.weight(task, is_last);
        return;
    }
  }

  // The passes that begin with task i, of one kind, of a schedule without transfers; returns what follows.
  size_t run_turns(size_t i, size_t last) {
    size_t end = i + 1;
    while (end < tasks_.size() && end - i < together_ && tasks_[end].pass == tasks_[i].pass) ++end;
    const telemetry::Span span(tasks_[i].pass == PipelinePass::forward ? "forward" : "backward", "parallel",
                               tasks_[i].micro_batch);
    if (tasks_[i].pass == PipelinePass::forward) {
      std::vector<PieceResult> results(end - i);
      std::vector<std::function<void()>> passes;
      for (size_t each = i; each < end; ++each)
        passes.push_back([&, each] { results[each - i] = work_.forward(tasks_[each], {}); });
      take_turns(passes);
      for (size_t each = i; each < end; ++each) held_[key_of(each)] = {{}, std::move(results[each - i])};
      return end;
    }
    if (!work_.differentiates_together) {
      for (size_t each = i; each < end; ++each) run_task(each, each + 1 == last);
      return end;
    }
    std::vector<at::Tensor> roots;
    for (size_t each = i; each < end; ++each) {
      roots.push_back(held_.at(key_of(each)).result.loss);
      held_.erase(key_of(each));
    }
    // One pass of autograd, which takes the turns backwards.
    work_.backward(tasks_[i], end == last,
                   [&] { torch::autograd::backward(roots, std::vector<at::Tensor>(roots.size())); });
    return end;
  }

  std::pair<int, int64_t> key_of(size_t i) const { return {tasks_[i].chunk, tasks_[i].micro_batch}; }

  static void differentiate(const Held& held, const at::Tensor& gradient) {
    std::vector<at::Tensor> roots, gradients;
    if (held.result.stream.defined()) {
      roots.push_back(held.result.stream);
      gradients.push_back(gradient);
    }
    if (held.result.loss.defined()) {
      roots.push_back(held.result.loss);
      gradients.emplace_back();
    }
    torch::autograd::backward(roots, gradients);
  }

  const Mesh* mesh_;
  const PipelineWork& work_;
  bool reads_ahead_;
  int stage_;
  size_t together_;
  const std::vector<PipelineTask>& tasks_;
  std::map<int, Channel> channels_;  // by stage
  // By task of this stage: where it is in its channel, and what is sent behind it.
  std::map<size_t, std::pair<Channel*, size_t>> incoming_;
  std::map<size_t, const PipelineTransfer*> outgoing_;
  std::map<size_t, Arriving> arriving_;
  std::vector<Pending> sends_;
  std::map<std::pair<int, int64_t>, Held> held_;  // by chunk and micro-batch
};

}  // namespace

void run_pipeline(const tune::PipelineSchedule& schedule, const Mesh* mesh, const PipelineWork& work,
                  bool reads_ahead) {
  const int stages = mesh == nullptr ? 1 : mesh->layout().size(Axis::pp);
  MOEBIUS_CHECK_EQ(schedule.stages, stages, "stages of the schedule");
  MOEBIUS_CHECK(schedule.together == 1 || stages == 1, "turns within a pipeline");
  Stage(schedule, mesh, work, reads_ahead).run();
}

}  // namespace moebius::parallel
