// What a training process does with its time, and so with its energy. Every moment of a run belongs to
// exactly one phase; what no span covers is idle.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace moebius::energy {

enum class Phase : uint8_t {
  kForward,
  kBackward,
  kReduce,     // gradients between devices
  kOptimizer,  // clipping, update, numbers of the step
  kData,       // waiting for batches, copying them
  kCheckpoint,
  kEvaluation,  // validation and samples of text
  kStep,        // a step replayed as one graph: its parts are not told apart
  kIdle         // nothing of the above
};
inline constexpr size_t kNumPhases = 9;
inline constexpr std::array<const char*, kNumPhases> kPhaseNames = {
    "forward", "backward", "reduce", "optimizer", "data", "checkpoint", "evaluation", "step", "idle"};

inline const char* phase_name(Phase phase) {
  return kPhaseNames[static_cast<size_t>(phase)];
}

// One value per phase.
using PerPhase = std::array<double, kNumPhases>;
inline double sum_of(const PerPhase& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

// [begin, end) in seconds of a monotonic clock.
struct PhaseSpan {
  Phase phase = Phase::kIdle;
  double begin_seconds = 0, end_seconds = 0;
};

}  // namespace moebius::energy
