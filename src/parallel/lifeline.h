// Tells every rank within a second when the process of another one ends before the run does, whatever it was
// doing: a connection from each rank to the first stays open for the whole run, and the system closes it with
// the process, however that ends. A machine that goes silent (power, network) is noticed by TCP keep-alive
// within about 10 s. A rank that hangs keeps its connection; that is what the timeouts of collectives are
// for.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace moebius::parallel {

class Rendezvous;

class Lifeline {
 public:
  // All ranks at the same time. `on_death` is called once, in a thread of this object, with
  // "rank 2 of 4 has ended before the run was done", or "is out of reach: …".
  Lifeline(Rendezvous& rendezvous, std::function<void(const std::string& text)> on_death);
  ~Lifeline();

  // The run ends well, here: whatever ends from now on is no death. All ranks call it, and it waits for all.
  void leave();

  // Waits at most so long for news of a death.
  std::optional<std::string> death_within(double seconds) const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace moebius::parallel
