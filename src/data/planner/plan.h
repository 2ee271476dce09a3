// Plans as values: which pieces of which documents make up the micro-batches of a step.
#pragma once

#include <cstdint>
#include <vector>

namespace moebius::data {

// A document, or a part of one that is longer than the context.
struct Piece {
  int64_t source = 0;    // of the stream; 0 for a list
  int64_t document = 0;  // in the source
  int64_t begin = 0;     // first token, from the document's own
  int64_t length = 0;    // >= 1
  bool operator==(const Piece&) const = default;
};

struct MicroBatchPlan {
  std::vector<Piece> pieces;
  std::vector<int64_t> arrivals;  // of each piece: its number in the stream
  int64_t row_length = 0;         // each piece is a row padded to this; 0: flat, padded at the end only
  int64_t tokens = 0;             // of the pieces
  int64_t padding = 0;            // computed for nothing
  double cost = 0;                // FLOPs of the forward pass, padding included

  void clear() {
    pieces.clear();
    arrivals.clear();
    row_length = tokens = padding = 0;
    cost = 0;
  }
  bool operator==(const MicroBatchPlan&) const = default;
};

// Micro-batch m of rank r is micro_batches[r * micro-batches per rank + m]. The last step of a finite stream
// may have empty ones.
struct StepPlan {
  int64_t step = 0;
  std::vector<MicroBatchPlan> micro_batches;
  bool operator==(const StepPlan&) const = default;
};

struct PlanShape {
  int64_t context = 8192;      // longest piece
  int64_t rows = 1;            // a micro-batch has room for rows * context tokens
  int64_t micro_batches = 16;  // per rank and step
  int64_t ranks = 1;
  int64_t window = 1000;   // pieces looked at ahead
  int64_t max_delay = 32;  // steps that `balanced` may hold back a long piece

  int64_t capacity() const { return rows * context; }
  // `balanced` evens out cost by micro-batches of up to so many tokens.
  int64_t balanced_capacity() const { return capacity() + capacity() / 4; }
  int64_t micro_batches_per_step() const { return ranks * micro_batches; }
  // Invariants only; users' values are checked where they come in.
  void check() const;
};

}  // namespace moebius::data
