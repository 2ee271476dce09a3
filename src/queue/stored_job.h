// A job as the queue keeps it. Times are seconds since 1970 (UTC).
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "queue/scaling.h"

namespace moebius::queue {

// waiting -> starting -> running -> done, failed or cancelled
//    ^          |           |
//    |          v           v
//    +------- (gone)     stopping        stopping: asked to save and end, to be paused, resized or cancelled
//    +----------------------+
enum class State : uint8_t { waiting, starting, running, stopping, done, failed, cancelled };
inline constexpr int kNumStates = 7;
const char* state_name(State state);
inline bool is_over(State state) {
  return state >= State::done;
}
// A process of the job may live.
inline bool is_active(State state) {
  return state == State::starting || state == State::running || state == State::stopping;
}

// What its user wants: hold keeps it from running until somebody resumes it.
enum class Wanted : uint8_t { run, hold, cancel };
const char* wanted_name(Wanted wanted);

inline constexpr double kNever = std::numeric_limits<double>::infinity();

struct StoredJob {
  int64_t id = 0;  // from 1, in the order of adding, never used again

  // As added.
  std::string name;
  std::vector<std::string> command;
  std::string folder;        // in which it runs
  int64_t priority = 0;      // higher first, where not all fit
  int64_t width = 1;         // places that one worker takes of the queue's capacity
  double length_s = 0;       // estimated run time on one worker
  double deadline_s = 0;     // to be finished at; what the slack given at adding amounts to
  bool can_pause = false;    // saves and ends on SIGTERM, and goes on when started again
  int pause_code = 75;       // with which it ends when it was paused (EX_TEMPFAIL: try again later)
  double watts = 0;          // of one worker; 0: unknown
  ScalingProfile scaling;    // one worker where nothing is known
  std::string scaling_text;  // "SPEEDS;POWERS", comma-separated; empty: one worker

  // What became of it.
  State state = State::waiting;
  Wanted wanted = Wanted::run;
  double added_s = 0;
  int64_t attempts = 0;       // times it was started
  int64_t lost_attempts = 0;  // of those, ended without a word (machine down, killed)
  int workers = 0;            // of the attempt that is active
  double state_since_s = 0;
  double first_start_s = 0;  // 0: not yet
  double finished_s = 0;     // 0: not yet
  double work_done_s = 0;    // seconds on one worker, as far as counted
  double counted_until_s = 0;
  double switch_left_s = 0;             // start-up of the active attempt, still without progress
  int64_t switches = 0;                 // pauses, resumes and changes of size
  double energy_kwh = 0, carbon_g = 0;  // estimated: watts over the time it ran, at the intensity of the grid
  int exit_code = 0;
  std::string note;  // why it is as it is, for people
  std::string plan;  // pieces, as plan_text() writes them

  double work_left_s() const { return length_s > work_done_s ? length_s - work_done_s : 0; }
};

// "4,7.2,13;1,1.9,3.6" as a profile, "" as none. UserError otherwise.
ScalingProfile parse_scaling(std::string_view text);

}  // namespace moebius::queue
