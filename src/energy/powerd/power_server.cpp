#include "energy/powerd/power_server.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "energy/powerd/socket_address.h"

namespace moebius::energy::powerd {
namespace {

constexpr size_t kLongestRequest = 512;
constexpr size_t kMostClients = 64;

bool somebody_listens(const std::filesystem::path& path) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const sockaddr_un address = socket_address(path);
  const bool lives = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return lives;
}

}  // namespace

PowerServer::PowerServer(std::filesystem::path socket, PowerService& service)
    : path_(std::move(socket)), service_(service) {
  if (somebody_listens(path_))
    throw_user_error("a daemon serves ", path_.string(), " already; stop it or choose another --socket");
  std::error_code ignored;
  if (std::filesystem::is_socket(path_, ignored)) std::filesystem::remove(path_, ignored);
  const sockaddr_un address = socket_address(path_);
  listener_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  // Everybody may connect: what a client may do depends on its user, and reading is free to all.
  if (listener_ < 0 || ::bind(listener_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::chmod(path_.c_str(), 0666) != 0 || ::listen(listener_, 16) != 0) {
    const int error_number = errno;
    if (listener_ >= 0) ::close(listener_);
    throw_user_error("cannot listen on ", path_.string(), ": ", std::strerror(error_number),
                     "; choose another --socket, or run as root");
  }
  MOEBIUS_CHECK_EQ(::pipe2(wake_, O_CLOEXEC | O_NONBLOCK), 0);
}

PowerServer::~PowerServer() {
  while (!connections_.empty()) drop(connections_.begin()->first);
  ::close(listener_);
  ::close(wake_[0]);
  ::close(wake_[1]);
  std::error_code ignored;
  std::filesystem::remove(path_, ignored);
}

void PowerServer::stop() {
  const char byte = 0;
  [[maybe_unused]] const ssize_t written = ::write(wake_[1], &byte, 1);
}

void PowerServer::run() {
  while (true) {
    std::vector<pollfd> watched{{wake_[0], POLLIN, 0}, {listener_, POLLIN, 0}};
    for (const auto& [fd, connection] : connections_) watched.push_back({fd, POLLIN, 0});
    const auto expiry = service_.next_expiry_seconds();
    const int timeout = expiry ? static_cast<int>(std::ceil(*expiry * 1e3)) : -1;
    if (::poll(watched.data(), watched.size(), timeout) < 0 && errno != EINTR) return;
    service_.expire();
    if (watched[0].revents != 0) return;
    for (size_t i = 2; i < watched.size(); ++i) {
      if (watched[i].revents == 0) continue;
      const auto found = connections_.find(watched[i].fd);
      if (found != connections_.end() && !serve(watched[i].fd, found->second)) drop(watched[i].fd);
    }
    if (watched[1].revents != 0) accept_client();
  }
}

void PowerServer::accept_client() {
  const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  ucred who{};
  socklen_t length = sizeof who;
  if (connections_.size() >= kMostClients || ::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) != 0) {
    ::close(fd);
    return;
  }
  connections_[fd] = {{next_id_++, static_cast<int64_t>(who.uid), who.pid}, {}};
}

bool PowerServer::serve(int fd, Connection& connection) {
  char buffer[1024];
  const ssize_t count = ::read(fd, buffer, sizeof buffer);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  if (count == 0) return false;
  connection.unread.append(buffer, static_cast<size_t>(count));
  for (size_t end; (end = connection.unread.find('\n')) != std::string::npos;) {
    std::string answer = service_.handle(connection.client, connection.unread.substr(0, end)) + "\n";
    connection.unread.erase(0, end + 1);
    // Answers are short; a client that does not read them is dropped.
    if (::send(fd, answer.data(), answer.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(answer.size()))
      return false;
  }
  return connection.unread.size() <= kLongestRequest;
}

void PowerServer::drop(int fd) {
  service_.disconnect(connections_.at(fd).client.id);
  connections_.erase(fd);
  ::close(fd);
}

}  // namespace moebius::energy::powerd
