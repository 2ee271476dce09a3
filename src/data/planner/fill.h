// Best fit from a window: fills a room until nothing that waits fits any more.
#pragma once

#include <algorithm>
#include <cstdint>

#include "data/planner/cost_model.h"
#include "data/planner/window.h"

namespace moebius::data {

// What is left of a micro-batch, counted in tokens.
struct TokenRoom {
  int64_t tokens;
  double tolerance;  // what may stay empty without a further search

  int64_t longest() const { return tokens; }
  double left() const { return static_cast<double>(tokens); }
  TokenRoom without(int64_t length) const { return {tokens - length, tolerance}; }
};

// The same counted in cost, with a limit of tokens beside.
struct CostRoom {
  const CostModel* model;
  double cost;
  int64_t tokens;
  double tolerance;

  int64_t longest() const { return std::min(tokens, model->longest(cost)); }
  double left() const { return cost; }
  CostRoom without(int64_t length) const {
    return {model, cost - model->of(length), tokens - length, tolerance};
  }
};

// The length to take next when about two more pieces fit: of the pairs that fit, the longer one of that which
// leaves least (of equal ones the one with the longest piece). A few dozen pairs are tried.
template <class Room>
int64_t longer_of_best_pair(const Window& window, const Room& room, int64_t top) {
  constexpr int kTries = 64;
  int64_t best = top;
  double best_left = room.without(top).left();
  int64_t length = top;
  for (int tries = 0; length > 0 && tries < kTries && best_left > room.tolerance; ++tries) {
    const Room rest = room.without(length);
    int64_t partner = window.largest_at_most(rest.longest());
    if (partner == length && !window.has_two_of(length)) partner = window.largest_at_most(length - 1);
    if (partner > length) break;  // from here on the pairs repeat
    const double left = partner == 0 ? rest.left() : rest.without(partner).left();
    if (left < best_left) {
      best_left = left;
      best = length;
    }
    if (partner == 0) {
      // Nothing goes with it: jump to the longest that leaves room for the shortest.
      const Room beside_shortest = room.without(window.smallest_at_least(1));
      length = window.largest_at_most(std::min(length - 1, beside_shortest.longest()));
    } else {
      length = window.largest_at_most(length - 1);
    }
  }
  return best;
}

// Oldest first while there is room for many, then by best fit. `longest` bounds the pieces that are taken by
// age. Returns the room that is left.
template <class Room>
Room fill(Window& window, Room room, int64_t longest, MicroBatchPlan& micro_batch) {
  int32_t by_age = window.oldest();
  for (;;) {
    const int64_t fits = room.longest();
    const int64_t top = window.largest_at_most(fits);
    if (top == 0) return room;
    while (by_age != Window::kNone && window.at(by_age).piece.length > longest) by_age = window.after(by_age);
    if (by_age != Window::kNone && window.at(by_age).piece.length <= fits / 4) {
      const int32_t slot = by_age;
      by_age = window.after(by_age);
      room = room.without(window.at(slot).piece.length);
      window.take(slot, micro_batch);
      continue;
    }
    const bool about_two = room.without(top).longest() <= top;
    const int64_t length = about_two ? longer_of_best_pair(window, room, top) : top;
    const int32_t slot = window.oldest_of(length);
    if (slot == by_age) by_age = window.after(by_age);
    room = room.without(length);
    window.take(slot, micro_batch);
  }
}

}  // namespace moebius::data
