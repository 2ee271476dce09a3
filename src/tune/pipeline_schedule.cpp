#include "tune/pipeline_schedule.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "base/check.h"

namespace moebius::tune {
namespace {

using Tasks = std::vector<PipelineTask>;

// One forward, one backward, behind as many forwards as there are stages below. With `delay` >= 0 weights are
// tasks of their own, that many micro-batches behind.
Tasks alternating(int stages, int stage, int64_t micro_batches, int64_t delay) {
  Tasks tasks;
  int64_t forwards = 0, backwards = 0, weights = 0;
  const auto forward = [&] { tasks.push_back({PipelinePass::forward, 0, forwards++}); };
  const int64_t warm_up = std::min<int64_t>(micro_batches, stages - 1 - stage);
  while (forwards < warm_up) forward();
  while (backwards < micro_batches) {
    if (forwards < micro_batches) forward();
    tasks.push_back({PipelinePass::backward, 0, backwards++});
    if (delay >= 0 && backwards - weights > delay) tasks.push_back({PipelinePass::weight, 0, weights++});
  }
  while (delay >= 0 && weights < micro_batches) tasks.push_back({PipelinePass::weight, 0, weights++});
  return tasks;
}

Tasks interleaved(int stages, int chunks, int stage, int64_t micro_batches) {
  const int64_t group = int64_t{stages} * chunks, total = micro_batches * chunks;
  // The i-th forward and backward pass of the stage.
  const auto chunk_of = [&](int64_t i) { return static_cast<int>(i % group / stages); };
  const auto micro_of = [&](int64_t i) { return i / group * stages + i % stages; };
  Tasks tasks;
  int64_t forwards = 0, backwards = 0;
  const auto forward = [&] {
    tasks.push_back({PipelinePass::forward, chunk_of(forwards), micro_of(forwards)});
    ++forwards;
  };
  const int64_t warm_up = std::min(total, int64_t{2} * (stages - 1 - stage) + int64_t{chunks - 1} * stages);
  while (forwards < warm_up) forward();
  while (backwards < total) {
    if (forwards < total) forward();
    tasks.push_back({PipelinePass::backward, chunks - 1 - chunk_of(backwards), micro_of(backwards)});
    ++backwards;
  }
  return tasks;
}

void add_transfers(PipelineSchedule& schedule) {
  std::map<std::tuple<bool, int, int64_t>, size_t> place;  // of the task (is backward, piece, micro-batch)
  for (int stage = 0; stage < schedule.stages; ++stage) {
    const Tasks& tasks = schedule.tasks[static_cast<size_t>(stage)];
    for (size_t i = 0; i < tasks.size(); ++i)
      if (tasks[i].pass != PipelinePass::weight)
        place[{tasks[i].pass == PipelinePass::backward, schedule.piece_of(stage, tasks[i]),
               tasks[i].micro_batch}] = i;
  }
  for (int stage = 0; stage < schedule.stages; ++stage) {
    const Tasks& tasks = schedule.tasks[static_cast<size_t>(stage)];
    for (size_t i = 0; i < tasks.size(); ++i) {
      if (tasks[i].pass == PipelinePass::weight) continue;
      const bool is_gradient = tasks[i].pass == PipelinePass::backward;
      const int piece = schedule.piece_of(stage, tasks[i]) + (is_gradient ? -1 : 1);
      if (piece < 0 || piece >= schedule.num_pieces() || schedule.stages == 1) continue;
      schedule.transfers.push_back({stage, piece % schedule.stages, i,
                                    place.at({is_gradient, piece, tasks[i].micro_batch}), is_gradient});
    }
  }
}

}  // namespace

PipelineKind pipeline_kind(const std::string& word) {
  for (const PipelineKind kind :
       {PipelineKind::one_f_one_b, PipelineKind::interleaved, PipelineKind::zero_bubble})
    if (word == name_of(kind)) return kind;
  MOEBIUS_CHECK(false, "no schedule is called ", word);
  return PipelineKind::one_f_one_b;
}

const char* name_of(PipelineKind kind) {
  static constexpr const char* kNames[] = {"1f1b", "interleaved", "zero_bubble"};
  return kNames[static_cast<size_t>(kind)];
}

int64_t PipelineSchedule::most_held(int stage) const {
  int64_t held = 0, most = 0;
  const PipelinePass last = kind == PipelineKind::zero_bubble ? PipelinePass::weight : PipelinePass::backward;
  for (const PipelineTask& task : tasks[static_cast<size_t>(stage)]) {
    if (task.pass == PipelinePass::forward) most = std::max(most, ++held);
    if (task.pass == last) --held;
  }
  return most;
}

PipelineSchedule make_schedule(PipelineKind kind, int stages, int chunks, int64_t micro_batches) {
  MOEBIUS_CHECK(stages >= 1 && chunks >= 1 && micro_batches >= 1, stages, " stages of ", chunks,
                " pieces for ", micro_batches, " micro-batches");
  MOEBIUS_CHECK(chunks == 1 || (kind == PipelineKind::interleaved && micro_batches % stages == 0), chunks,
                " pieces per stage for ", micro_batches, " micro-batches");
  PipelineSchedule schedule{.kind = kind, .stages = stages, .chunks = chunks, .micro_batches = micro_batches};
  for (int stage = 0; stage < stages; ++stage) {
    if (chunks > 1) {
      schedule.tasks.push_back(interleaved(stages, chunks, stage, micro_batches));
    } else {
      schedule.tasks.push_back(
          alternating(stages, stage, micro_batches, kind == PipelineKind::zero_bubble ? stage : -1));
    }
  }
  add_transfers(schedule);
  return schedule;
}

PipelineSchedule make_turns(int64_t micro_batches, int together) {
  MOEBIUS_CHECK(micro_batches >= 1 && together >= 1, micro_batches, " micro-batches, ", together,
                " together");
  PipelineSchedule schedule{.micro_batches = micro_batches, .together = together};
  Tasks& tasks = schedule.tasks.emplace_back();
  for (int64_t begin = 0; begin < micro_batches; begin += together) {
    const int64_t end = std::min(begin + together, micro_batches);
    for (const PipelinePass pass : {PipelinePass::forward, PipelinePass::backward})
      for (int64_t micro = begin; micro < end; ++micro) tasks.push_back({pass, 0, micro});
  }
  return schedule;
}

PipelineTimes PipelineTimes::proportional_to(const PipelineSchedule& schedule,
                                             const std::vector<double>& cost_of_piece) {
  MOEBIUS_CHECK_EQ(static_cast<int>(cost_of_piece.size()), schedule.num_pieces());
  PipelineTimes times;
  times.forward = times.backward = times.weight = cost_of_piece;
  if (schedule.kind != PipelineKind::zero_bubble)
    for (double& each : times.backward) each *= 2;
  return times;
}

Timeline timeline_of(const PipelineSchedule& schedule, const PipelineTimes& times) {
  Timeline timeline;
  std::vector<std::vector<const PipelineTransfer*>> needed;  // by each task; of them, one at most
  std::vector<size_t> done(static_cast<size_t>(schedule.stages), 0);
  size_t left = 0;
  for (const Tasks& tasks : schedule.tasks) {
    timeline.begin.emplace_back(tasks.size());
    timeline.end.emplace_back(tasks.size());
    needed.emplace_back(tasks.size(), nullptr);
    left += tasks.size();
  }
  for (const PipelineTransfer& each : schedule.transfers)
    needed[static_cast<size_t>(each.to)][each.before] = &each;
  double busy = 0;
  while (left > 0) {
    const size_t left_before = left;
    for (size_t s = 0; s < done.size(); ++s) {
      for (; done[s] < schedule.tasks[s].size(); ++done[s], --left) {
        const size_t i = done[s];
        double begin = i > 0 ? timeline.end[s][i - 1] : 0;
        if (const PipelineTransfer* const transfer = needed[s][i]; transfer != nullptr) {
          const auto from = static_cast<size_t>(transfer->from);
          if (done[from] <= transfer->after) break;
          begin = std::max(begin, timeline.end[from][transfer->after] + times.transfer);
        }
        const PipelineTask& task = schedule.tasks[s][i];
        const auto piece = static_cast<size_t>(schedule.piece_of(static_cast<int>(s), task));
        const double seconds = task.pass == PipelinePass::forward    ? times.forward[piece]
                               : task.pass == PipelinePass::backward ? times.backward[piece]
                                                                     : times.weight[piece];
        timeline.begin[s][i] = begin;
        timeline.end[s][i] = begin + seconds;
        timeline.length = std::max(timeline.length, begin + seconds);
        busy += seconds;
      }
    }
    MOEBIUS_CHECK(left < left_before, "the schedule ", name_of(schedule.kind), " waits for itself");
  }
  const double all = timeline.length * static_cast<double>(schedule.stages);
  timeline.bubble = all > 0 ? 1 - busy / all : 0;
  return timeline;
}

}  // namespace moebius::tune
