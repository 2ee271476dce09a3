#include "parallel/rendezvous.h"

#include <chrono>
#include <vector>

#include "base/concat.h"
#include "base/error.h"
#include "parallel/c10d_store.h"
#include "parallel/communicator.h"

namespace moebius::parallel {
namespace {

std::chrono::milliseconds milliseconds_of(double seconds) {
  return std::chrono::milliseconds(static_cast<int64_t>(seconds * 1000));
}

// Errors of c10d carry a trace of the C++ stack after their first line.
std::string first_line(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, text.find('\n'));
}

std::vector<uint8_t> bytes_of(const std::string& text) {
  return {text.begin(), text.end()};
}

}  // namespace

Rendezvous::Rendezvous(const Options& options) : store_(std::make_shared<Store>()) {
  c10d::TCPStoreOptions wanted;
  wanted.port = static_cast<uint16_t>(options.port);
  wanted.isServer = options.rank == 0;
  wanted.numWorkers = static_cast<size_t>(options.size);
  wanted.waitWorkers = false;
  wanted.timeout = milliseconds_of(options.timeout_s);
  if (wanted.isServer && options.listen_fd >= 0) wanted.masterListenFd = options.listen_fd;
  store_->options = options;
  std::string address = concat(options.host, ":", options.port);
  try {
    store_->store = c10::make_intrusive<c10d::TCPStore>(options.host, wanted);
  } catch (const std::exception& error) {
    const std::string what = first_line(error);
    if (options.rank == 0)
      throw_user_error("rank 0 cannot serve the rendezvous at ", address, " (", what,
                       "); set MASTER_PORT to a free port, the same for all ranks");
    throw_user_error("rank ", options.rank, " does not reach the rendezvous of rank 0 at ", address,
                     " within ", options.timeout_s, " s (", what,
                     "); start rank 0, or set MASTER_ADDR and MASTER_PORT to where it is");
  }
  store_->options.port = store_->store->getPort();
  address = concat(options.host, ":", store_->options.port);
  if (options.on_port) options.on_port(store_->options.port);
  const int told = options.size;
  if (options.rank == 0) set("world_size", std::to_string(told));
  if (const std::string first = get("world_size"); first != std::to_string(told))
    throw_user_error("rank ", options.rank, " was told of ", told, " ranks, rank 0 of ", first,
                     " (rendezvous at ", address, "); start all ranks with the same WORLD_SIZE");
  if (add(concat("rank/", options.rank), 1) > 1)
    throw_user_error(
        "two processes come to the rendezvous at ", address, " as rank ", options.rank,
        "; give each process a RANK of its own, or, when they belong to two runs, each run its own "
        "MASTER_PORT");
  try {
    meet("rendezvous");
  } catch (const CommunicationFailed&) {
    const int64_t come = add("meeting/rendezvous", 0);
    throw_user_error("only ", come, " of ", options.size, " ranks came to the rendezvous at ", address,
                     " within ", options.timeout_s,
                     " s; start as many processes as WORLD_SIZE says, or raise parallel.timeout_s");
  }
}

const Rendezvous::Options& Rendezvous::options() const {
  return store_->options;
}

void Rendezvous::set(const std::string& name, const std::string& text) {
  try {
    store_->store->set(name, bytes_of(text));
  } catch (const std::exception& error) {
    throw CommunicationFailed(
        concat("rendezvous, rank ", options().rank, ", set ", name, ": ", first_line(error)));
  }
}

std::string Rendezvous::get(const std::string& name) {
  try {
    const std::vector<uint8_t> bytes = store_->store->get(name);
    return {bytes.begin(), bytes.end()};
  } catch (const std::exception& error) {
    throw CommunicationFailed(
        concat("rendezvous, rank ", options().rank, ", get ", name, ": ", first_line(error)));
  }
}

int64_t Rendezvous::add(const std::string& name, int64_t count) {
  try {
    return store_->store->add(name, count);
  } catch (const std::exception& error) {
    throw CommunicationFailed(
        concat("rendezvous, rank ", options().rank, ", add ", name, ": ", first_line(error)));
  }
}

void Rendezvous::meet(const std::string& name) {
  if (add("meeting/" + name, 1) == options().size) set("met/" + name, "all");
  get("met/" + name);
}

}  // namespace moebius::parallel
