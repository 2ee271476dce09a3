// The address of a Unix socket.
#pragma once

#include <sys/socket.h>
#include <sys/un.h>

#include <cstring>
#include <filesystem>

#include "base/error.h"

namespace moebius::energy::powerd {

inline sockaddr_un socket_address(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string text = path.string();
  if (text.empty() || text.size() >= sizeof address.sun_path)
    throw_user_error("the socket's path '", text, "' has ", text.size(), " bytes; 1 to ",
                     sizeof address.sun_path - 1, " fit");
  std::memcpy(address.sun_path, text.data(), text.size());
  return address;
}

}  // namespace moebius::energy::powerd
