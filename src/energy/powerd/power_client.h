// A training process's side of moebius-powerd. Dropping the object closes the connection, whereupon the
// daemon resets what this client had locked; so does the process's death. One thread.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "base/result.h"

namespace moebius::energy::powerd {

class PowerClient {
 public:
  static Result<PowerClient> connect(const std::filesystem::path& socket);
  ~PowerClient();
  PowerClient(PowerClient&& other) noexcept;
  PowerClient& operator=(PowerClient&& other) noexcept;

  Result<std::vector<int>> clocks_mhz(const std::string& uuid);
  // For `lease_seconds`, unless renewed. kPermission: this daemon or user may only read; kInvalid names the
  // nearest clock.
  Result<void> lock(const std::string& uuid, int mhz, double lease_seconds);
  Result<void> renew(double lease_seconds);
  Result<void> reset(const std::string& uuid);
  Result<std::string> status();

 private:
  explicit PowerClient(int fd) : fd_(fd) {}
  // The words behind "ok".
  Result<std::string> ask(const std::string& request);

  int fd_ = -1;
};

}  // namespace moebius::energy::powerd
