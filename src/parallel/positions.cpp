#include "parallel/positions.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <sstream>
#include <thread>
#include <vector>

#include "base/concat.h"
#include "parallel/communicator.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {

struct Positions::State {
  struct Position {
    int64_t count = 0;  // of exchanges that were begun
    std::string axis = "none", collective = "none";
    int64_t number = 0;
  };

  explicit State(Rendezvous& to) : rendezvous(to) {}

  void post() {
    Position now;
    {
      const std::lock_guard lock(mutex);
      if (own.count == posted) return;
      now = own;
      posted = own.count;
    }
    rendezvous.set(name(rendezvous.options().rank),
                   concat(now.count, " ", now.axis, " ", now.collective, " ", now.number));
  }
  static std::string name(int rank) { return concat("position/", rank); }

  void run(double seconds) {
    std::unique_lock lock(mutex);
    while (!changed.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return ends; })) {
      lock.unlock();
      try {
        post();
      } catch (const CommunicationFailed&) {
        return;  // the rendezvous went with the first rank
      }
      lock.lock();
    }
  }

  Rendezvous& rendezvous;
  std::mutex mutex;
  std::condition_variable changed;
  bool ends = false;
  Position own;
  int64_t posted = -1;
  std::thread poster;
};

Positions::Positions(Rendezvous& rendezvous, double seconds) : state_(std::make_unique<State>(rendezvous)) {
  state_->post();
  rendezvous.meet("positions");
  state_->poster = std::thread([state = state_.get(), seconds] { state->run(seconds); });
}

Positions::~Positions() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ends = true;
  }
  state_->changed.notify_all();
  state_->poster.join();
}

void Positions::begin(const std::string& axis, const char* collective, int64_t number) {
  const std::lock_guard lock(state_->mutex);
  State::Position& own = state_->own;
  ++own.count;
  if (own.axis != axis) own.axis = axis;
  own.collective = collective;
  own.number = number;
}

std::string Positions::who_is_behind() {
  std::vector<State::Position> all;
  try {
    state_->post();
    for (int rank = 0; rank < state_->rendezvous.options().size; ++rank) {
      std::istringstream text(state_->rendezvous.get(State::name(rank)));
      State::Position& each = all.emplace_back();
      text >> each.count >> each.axis >> each.collective >> each.number;
    }
  } catch (const CommunicationFailed&) {
    return {};
  }
  int64_t most = 0;
  for (const State::Position& each : all) most = std::max(most, each.count);
  std::string result;
  for (size_t rank = 0; rank < all.size(); ++rank) {
    const State::Position& each = all[rank];
    if (each.count < most)
      result += concat(result.empty() ? "" : "; ", "rank ", rank, " is behind: its last exchange was ",
                       each.collective, " number ", each.number, " on axis ", each.axis);
  }
  return result;
}

}  // namespace moebius::parallel
