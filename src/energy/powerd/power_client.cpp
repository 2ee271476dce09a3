#include "energy/powerd/power_client.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <sstream>
#include <utility>

#include "base/concat.h"
#include "energy/powerd/socket_address.h"

namespace moebius::energy::powerd {
namespace {

constexpr time_t kLongestAnswerSeconds = 5;  // a driver may take its time

ErrorKind kind_of_word(const std::string& word) {
  if (word == "permission") return ErrorKind::kPermission;
  if (word == "invalid") return ErrorKind::kInvalid;
  if (word == "not-found") return ErrorKind::kNotFound;
  if (word == "unsupported") return ErrorKind::kUnsupported;
  return ErrorKind::kUnavailable;
}

}  // namespace

Result<PowerClient> PowerClient::connect(const std::filesystem::path& socket) {
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return make_error(ErrorKind::kOther, "no socket: ", std::strerror(errno));
  const timeval timeout{kLongestAnswerSeconds, 0};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
  const sockaddr_un address = socket_address(socket);
  if (::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error_number = errno;
    ::close(fd);
    return make_error(error_number == EACCES ? ErrorKind::kPermission : ErrorKind::kUnavailable,
                      "no moebius-powerd at ", socket.string(), " (", std::strerror(error_number), ")");
  }
  return PowerClient(fd);
}

PowerClient::~PowerClient() {
  if (fd_ >= 0) ::close(fd_);
}

PowerClient::PowerClient(PowerClient&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

PowerClient& PowerClient::operator=(PowerClient&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

Result<std::string> PowerClient::ask(const std::string& request) {
  const std::string line = request + "\n";
  if (::send(fd_, line.data(), line.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(line.size()))
    return make_error(ErrorKind::kUnavailable, "moebius-powerd is gone (", std::strerror(errno), ")");
  std::string answer;
  while (answer.empty() || answer.back() != '\n') {
    char buffer[4096];
    const ssize_t count = ::read(fd_, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0)
      return make_error(
          count < 0 && errno == EAGAIN ? ErrorKind::kTimeout : ErrorKind::kUnavailable,
          count < 0 && errno == EAGAIN ? "moebius-powerd does not answer" : "moebius-powerd is gone");
    answer.append(buffer, static_cast<size_t>(count));
  }
  answer.pop_back();
  if (answer == "ok") return std::string();
  if (answer.starts_with("ok ")) return answer.substr(3);
  std::istringstream words(answer);
  std::string error, kind, text;
  words >> error >> kind;
  std::getline(words, text);
  return make_error(kind_of_word(kind), text.empty() ? answer : text.substr(1));
}

Result<std::vector<int>> PowerClient::clocks_mhz(const std::string& uuid) {
  const auto answer = ask("clocks " + uuid);
  if (!answer) return answer.error();
  std::istringstream words(*answer);
  std::vector<int> clocks;
  for (int mhz; words >> mhz;) clocks.push_back(mhz);
  return clocks;
}

Result<void> PowerClient::lock(const std::string& uuid, int mhz, double lease_seconds) {
  const auto answer = ask(concat("lock ", uuid, " ", mhz, " ", lease_seconds));
  if (!answer) return answer.error();
  return {};
}

Result<void> PowerClient::renew(double lease_seconds) {
  const auto answer = ask(concat("renew ", lease_seconds));
  if (!answer) return answer.error();
  return {};
}

Result<void> PowerClient::reset(const std::string& uuid) {
  const auto answer = ask("reset " + uuid);
  if (!answer) return answer.error();
  return {};
}

Result<std::string> PowerClient::status() {
  return ask("status");
}

}  // namespace moebius::energy::powerd
