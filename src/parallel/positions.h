// How far every rank has come in its exchanges, for the message when one does not come to the next.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace moebius::parallel {

class Rendezvous;

class Positions {
 public:
  // All ranks at the same time. A thread posts where this rank is, at most every `seconds`.
  explicit Positions(Rendezvous& rendezvous, double seconds = 0.5);
  ~Positions();

  // This rank begins an exchange. Any thread.
  void begin(const std::string& axis, const char* collective, int64_t number);

  // The ranks that are behind the most advanced one, with their last exchange: "rank 1 is behind: its last
  // exchange was all_reduce number 120 on axis world". Ranks of other groups may be behind because they wait,
  // too. Empty when nobody is behind, or the rendezvous is gone.
  std::string who_is_behind();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace moebius::parallel
