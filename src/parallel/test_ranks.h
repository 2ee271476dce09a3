// Threads that meet at a rendezvous on loopback, for tests.
#pragma once

#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <thread>
#include <vector>

#include "parallel/c10d_communicator.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {

// Runs `body` in one thread per rank; the first error is thrown again.
inline void run_ranks(int size, double timeout_s, const std::function<void(Rendezvous&)>& body) {
  set_up_c10d();
  // The first rank's port is known once it serves.
  std::promise<int> port;
  std::shared_future<int> known = port.get_future().share();
  std::vector<std::unique_ptr<Rendezvous>> all(static_cast<size_t>(size));  // until nobody asks them any more
  std::vector<std::thread> threads;
  std::vector<std::exception_ptr> errors(static_cast<size_t>(size));
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        Rendezvous::Options options{"127.0.0.1", 0, rank, size, timeout_s};
        if (rank == 0) options.on_port = [&](int taken) { port.set_value(taken); };
        if (rank > 0) options.port = known.get();
        Rendezvous& rendezvous = *(all[static_cast<size_t>(rank)] = std::make_unique<Rendezvous>(options));
        body(rendezvous);
      } catch (...) {
        errors[static_cast<size_t>(rank)] = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& error : errors)
    if (error != nullptr) std::rethrow_exception(error);
}

}  // namespace moebius::parallel
