// The socket of moebius-powerd: a Unix stream socket whose clients are told apart, and named to the service,
// by what the kernel says of them (SO_PEERCRED). One thread.
#pragma once

#include <atomic>
#include <filesystem>
#include <map>
#include <string>

#include "energy/powerd/power_service.h"

namespace moebius::energy::powerd {

class PowerServer {
 public:
  // Listens at once. A socket left by a daemon that is gone is replaced; UserError when one lives there, or
  // the path cannot be used.
  PowerServer(std::filesystem::path socket, PowerService& service);
  ~PowerServer();
  PowerServer(const PowerServer&) = delete;
  PowerServer& operator=(const PowerServer&) = delete;

  // Serves until stop(), which may come from a signal handler.
  void run();
  void stop();

 private:
  struct Connection {
    Client client;
    std::string unread;
  };
  void accept_client();
  // False when the client is gone.
  bool serve(int fd, Connection& connection);
  void drop(int fd);

  std::filesystem::path path_;
  PowerService& service_;
  int listener_ = -1;
  int wake_[2] = {-1, -1};  // stop() writes to it
  int64_t next_id_ = 1;
  std::map<int, Connection> connections_;
};

}  // namespace moebius::energy::powerd
