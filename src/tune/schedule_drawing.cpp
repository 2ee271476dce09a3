#include "tune/schedule_drawing.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/concat.h"

namespace moebius::tune {
namespace {

using When = DataExchanges::When;
using Row = std::vector<std::string>;

std::string label_of(const PipelineSchedule& schedule, const PipelineTask& task) {
  const char letter = task.pass == PipelinePass::forward    ? 'F'
                      : task.pass == PipelinePass::backward ? 'B'
                                                            : 'W';
  std::string text = concat(letter, task.micro_batch);
  if (schedule.together > 1) text += '~';
  if (schedule.chunks > 1) text += static_cast<char>('a' + task.chunk % 26);
  return text;
}

struct Rows {
  Row compute, between, data;
};

// What one stage does; `slots` in all.
Rows rows_of(const PipelineSchedule& schedule, int stage, const Timeline& timeline,
             const DataExchanges& exchanges, size_t slots) {
  const auto s = static_cast<size_t>(stage);
  const std::vector<PipelineTask>& tasks = schedule.tasks[s];
  Rows rows{Row(slots), Row(slots), Row(slots)};
  const auto begin = [&](size_t i) { return static_cast<size_t>(std::lround(timeline.begin[s][i])); };
  const auto end = [&](size_t i) { return static_cast<size_t>(std::lround(timeline.end[s][i])); };
  const bool has_weights = schedule.kind == PipelineKind::zero_bubble;
  size_t first_forward = tasks.size();
  for (size_t i = 0; i < tasks.size(); ++i) {
    const bool is_forward = tasks[i].pass == PipelinePass::forward;
    if (is_forward) first_forward = std::min(first_forward, i);
    // Gradients are complete behind the tasks of weights.
    const bool completes = tasks[i].pass == (has_weights ? PipelinePass::weight : PipelinePass::backward);
    const bool gathers = exchanges.weights == When::always ||
                         (exchanges.weights == When::once && is_forward && i == first_forward);
    const bool sums =
        completes &&
        (exchanges.gradients == When::always ||
         (exchanges.gradients == When::once && i + static_cast<size_t>(schedule.together) >= tasks.size()));
    for (size_t slot = begin(i); slot < end(i); ++slot) {
      rows.compute[slot] = label_of(schedule, tasks[i]);
      if (gathers) rows.data[slot] += 'G';
      if (sums) rows.data[slot] += 'S';
    }
  }
  for (const PipelineTransfer& transfer : schedule.transfers)
    if (transfer.from == stage)
      rows.between[end(transfer.after)] =
          concat(transfer.is_gradient ? '<' : '>', tasks[transfer.after].micro_batch);
  if (exchanges.gradients != When::never) rows.data[slots - 2] += 'S';
  rows.compute[slots - 1] = "U";
  return rows;
}

}  // namespace

std::string draw(const PipelineSchedule& schedule, const DataExchanges& exchanges) {
  const Timeline timeline = timeline_of(
      schedule, PipelineTimes::proportional_to(
                    schedule, std::vector<double>(static_cast<size_t>(schedule.num_pieces()), 1)));
  // Behind the last pass a slot for what it sends and for the end of the sums, and one for the update.
  const size_t slots = static_cast<size_t>(std::lround(timeline.length)) + 2;
  const size_t width =
      concat(schedule.micro_batches - 1).size() + (schedule.chunks > 1 || schedule.together > 1 ? 2 : 1);
  std::string text;
  const auto add_row = [&](const std::string& name, const Row& row) {
    std::string line = name;
    line.resize(10, ' ');
    for (const std::string& cell : row) {
      const std::string shown = cell.empty() ? "." : cell;
      line += ' ' + shown + std::string(width - std::min(width, shown.size()), ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + '\n';
  };
  const auto is_used = [](const Row& row) {
    return std::any_of(row.begin(), row.end(), [](const std::string& cell) { return !cell.empty(); });
  };
  for (int stage = 0; stage < schedule.stages; ++stage) {
    const Rows rows = rows_of(schedule, stage, timeline, exchanges, slots);
    add_row(concat("stage ", stage), rows.compute);
    if (is_used(rows.between)) add_row("  sends", rows.between);
    if (is_used(rows.data)) add_row("  data", rows.data);
  }
  return text;
}

}  // namespace moebius::tune
