// Where the processes of a run meet: a small store of names and texts that rank 0 serves (c10d's TCPStore).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace moebius::parallel {

class Rendezvous {
 public:
  struct Options {
    std::string host;  // of rank 0, as all ranks reach it
    int port = 0;      // 0: rank 0 takes a free one (tests)
    int rank = 0, size = 1;
    double timeout_s = 300;                      // for all ranks to come, and for a text to be there
    std::function<void(int port)> on_port = {};  // called by rank 0 when it serves
    int listen_fd = -1;                          // of rank 0: a socket that listens at the port already
  };

  // Blocks until all ranks have come. UserError, with the way out: the port is taken, the host is unknown, or
  // rank 0 or another one does not come in time.
  explicit Rendezvous(const Options& options);

  const Options& options() const;  // with the port that was taken

  void set(const std::string& name, const std::string& text);
  // Waits for it; CommunicationFailed when it does not come in time.
  std::string get(const std::string& name);
  // Adds to a count that begins at 0; the sum.
  int64_t add(const std::string& name, int64_t count);
  // Blocks until all ranks have come to the meeting of this name; each name once.
  void meet(const std::string& name);

  // c10d's side, for those who make process groups; in c10d_store.h.
  struct Store;
  const Store& store() const { return *store_; }

 private:
  std::shared_ptr<Store> store_;
};

}  // namespace moebius::parallel
