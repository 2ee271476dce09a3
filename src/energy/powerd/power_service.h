// What moebius-powerd does for its clients, free of sockets: requests are lines of words, and so are answers.
//
//   gpus                          ok UUID NAME…                      (a line per GPU, then "ok")
//   clocks UUID                   ok 210 225 … 1980
//   status                        ok read-only | ok may-set, and what is locked by whom
//   lock UUID MHZ SECONDS         ok MHZ          locked for so long, or until the client goes
//   renew SECONDS                 ok              all of the client's locks, from now
//   reset UUID                    ok              the client's own lock
//
// and on failure "error KIND TEXT". These six are the whole allow-list: no power limits, no modes, no memory
// clocks, and no clock outside [min_mhz, max_mhz] or the GPU's own list.
//
// Who may: the users of `allowed_uids` and root; everybody else, and everybody when `may_set` is false, may
// only read. A GPU is locked by one client at a time. A lock ends when its time is over, when its client's
// connection closes (also by kill -9), when the service is destroyed; then the clocks are reset. One thread.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "energy/clock_control.h"
#include "energy/nvml.h"

namespace moebius::energy::powerd {

struct ServiceOptions {
  bool may_set = false;  // read-only by default
  std::vector<int64_t> allowed_uids;
  int min_mhz = 0, max_mhz = 100'000;
  double longest_lease_seconds = 300;
};

struct Client {
  int64_t id = 0, uid = -1, pid = -1;
};

class PowerService {
 public:
  // `on_locks` gets the UUIDs that are locked before a lock is set and after one is reset: what a helper
  // would have to reset if this process died.
  PowerService(const Nvml& nvml, const ServiceOptions& options, const Clock& clock,
               std::function<void(const std::vector<std::string>&)> on_locks = {});
  ~PowerService();
  PowerService(const PowerService&) = delete;
  PowerService& operator=(const PowerService&) = delete;

  // The answer to one request, without its end of line.
  std::string handle(const Client& client, const std::string& request);
  void disconnect(int64_t client_id);
  // Resets what has run out; call at least every `next_expiry_seconds`.
  void expire();
  std::optional<double> next_expiry_seconds() const;  // from now; nothing locked: none

  const std::vector<std::string>& uuids() const { return uuids_; }

 private:
  struct Lock {
    Client client;
    int mhz = 0;
    double until = 0;
  };
  std::string lock(const Client& client, const std::string& uuid, int mhz, double seconds);
  std::string status() const;
  void reset(const std::string& uuid);
  void tell_locks() const;
  bool may_set(const Client& client, std::string* why) const;

  ServiceOptions options_;
  const Clock& clock_;
  std::function<void(const std::vector<std::string>&)> on_locks_;
  std::vector<std::string> uuids_;
  std::map<std::string, ClockControl> gpus_;
  std::map<std::string, Lock> locks_;
};

}  // namespace moebius::energy::powerd
