#include "parallel/lifeline.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "base/concat.h"
#include "base/error.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {
namespace {

// What is said on a connection, one byte each, before it closes: by a rank that leaves, and by the first to
// the others.
constexpr char kLeaves = 'L', kAllHaveLeft = 'A', kDeath = 'D';

void keep_alive(int fd) {
  const auto set = [&](int level, int option, int value) {
    ::setsockopt(fd, level, option, &value, sizeof value);
  };
  set(SOL_SOCKET, SO_KEEPALIVE, 1);
  set(IPPROTO_TCP, TCP_KEEPIDLE, 3);
  set(IPPROTO_TCP, TCP_KEEPINTVL, 2);
  set(IPPROTO_TCP, TCP_KEEPCNT, 3);
  set(IPPROTO_TCP, TCP_USER_TIMEOUT, 9000);
}

bool write_all(int fd, const void* data, size_t size) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t count = ::send(fd, at, size, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    at += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

bool read_all(int fd, void* data, size_t size) {
  char* at = static_cast<char*>(data);
  while (size > 0) {
    const ssize_t count = ::recv(fd, at, size, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    at += count;
    size -= static_cast<size_t>(count);
  }
  return true;
}

[[noreturn]] void throw_socket(const char* what) {
  throw_user_error("the connection that watches over the ranks cannot be made: ", what, ": ",
                   std::strerror(errno),
                   "; a firewall between the machines may be in the way: let TCP through between them");
}

int listen_anywhere(int& port) {
  const int fd = ::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int family = fd >= 0 ? AF_INET6 : AF_INET;
  const int listener = fd >= 0 ? fd : ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) throw_socket("socket");
  sockaddr_storage address{};
  socklen_t size = 0;
  if (family == AF_INET6) {
    const int off = 0;  // IPv4 too
    ::setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
    auto& six = reinterpret_cast<sockaddr_in6&>(address);
    six.sin6_family = AF_INET6;
    six.sin6_addr = in6addr_any;
    size = sizeof six;
  } else {
    auto& four = reinterpret_cast<sockaddr_in&>(address);
    four.sin_family = AF_INET;
    four.sin_addr.s_addr = htonl(INADDR_ANY);
    size = sizeof four;
  }
  if (::bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 || ::listen(listener, 1024) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    throw_socket("listen");
  port = ntohs(family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                  : reinterpret_cast<sockaddr_in&>(address).sin_port);
  return listener;
}

int connect_to(const std::string& host, const std::string& port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0)
    throw_user_error("the host of rank 0, '", host, "', is not known (", ::gai_strerror(error),
                     "); set MASTER_ADDR to a name or address that every machine knows");
  int fd = -1;
  for (const addrinfo* each = found; each != nullptr && fd < 0; each = each->ai_next) {
    fd = ::socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && ::connect(fd, each->ai_addr, each->ai_addrlen) != 0) {
      ::close(fd);
      fd = -1;
    }
  }
  ::freeaddrinfo(found);
  if (fd < 0) throw_socket("connect");
  return fd;
}

}  // namespace

struct Lifeline::State {
  int rank = 0, size = 1;
  std::function<void(const std::string&)> on_death;
  std::vector<int> connections;  // by rank; of the others only that to the first
  std::vector<char> has_left;    // by rank, as far as is known here
  int wake = -1;                 // an eventfd: written when this rank leaves, or the object goes
  std::thread watcher;

  mutable std::mutex mutex;
  mutable std::condition_variable changed;
  bool is_leaving = false, ends = false, all_left = false;
  std::optional<std::string> death;

  ~State() {
    for (const int fd : connections)
      if (fd >= 0) ::close(fd);
    if (wake >= 0) ::close(wake);
  }

  // `error`: of the connection to it, 0 where it was closed in order.
  void report(int dead, int error) {
    // Nothing has come back from there for long; a process that ends closes its connection.
    const bool is_silent = error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
    report(concat("rank ", dead, " of ", size,
                  is_silent ? " is out of reach: its machine, or the network to it, is down"
                            : " has ended before the run was done"));
  }
  void report(const std::string& text) {
    {
      const std::lock_guard lock(mutex);
      if (death || all_left || ends) return;
      death = text;
    }
    changed.notify_all();
    // The first tells the others; its own connections close with it if it ends.
    if (rank == 0) {
      const auto length = static_cast<uint32_t>(text.size());
      for (int other = 1; other < size; ++other) {
        const int fd = connections[static_cast<size_t>(other)];
        if (fd < 0 || has_left[static_cast<size_t>(other)] != 0) continue;
        if (write_all(fd, &kDeath, 1) && write_all(fd, &length, sizeof length))
          write_all(fd, text.data(), text.size());
      }
    }
    on_death(text);
  }

  void close_all_left() {
    for (int other = 1; other < size; ++other)
      if (connections[static_cast<size_t>(other)] >= 0)
        write_all(connections[static_cast<size_t>(other)], &kAllHaveLeft, 1);
  }
  void set_all_left() {
    {
      const std::lock_guard lock(mutex);
      all_left = true;
    }
    changed.notify_all();
  }
  bool is_over() const {
    const std::lock_guard lock(mutex);
    return ends || all_left || death.has_value();
  }

  // Something came from, or happened to, the connection to `other`.
  void hear(int other) {
    const auto slot = static_cast<size_t>(other);
    char said = 0;
    errno = 0;
    if (!read_all(connections[slot], &said, 1)) {
      const int error = errno;
      ::close(std::exchange(connections[slot], -1));
      if (has_left[slot] == 0) report(other, error);
      return;
    }
    if (said == kLeaves) has_left[slot] = 1;
    if (said == kAllHaveLeft) set_all_left();
    if (said == kDeath) {
      uint32_t length = 0;
      std::string text = "a rank has ended before the run was done";
      if (read_all(connections[slot], &length, sizeof length) && length < 4096) {
        text.resize(length);
        if (!read_all(connections[slot], text.data(), length))
          text = "a rank has ended before the run was done";
      }
      report(text);
    }
  }

  void watch() {
    bool told = false;
    while (!is_over()) {
      std::vector<pollfd> fds{{wake, POLLIN, 0}};
      std::vector<int> ranks{-1};
      for (int other = 0; other < size; ++other) {
        if (connections[static_cast<size_t>(other)] < 0) continue;
        fds.push_back({connections[static_cast<size_t>(other)], POLLIN, 0});
        ranks.push_back(other);
      }
      if (::poll(fds.data(), fds.size(), 1000) < 0 && errno != EINTR) return;
      for (size_t i = 1; i < fds.size(); ++i)
        if (fds[i].revents != 0 && !is_over()) hear(ranks[i]);
      if (fds[0].revents != 0) {
        uint64_t count = 0;
        [[maybe_unused]] const ssize_t ignored = ::read(wake, &count, sizeof count);
      }
      bool leaves = false;
      {
        const std::lock_guard lock(mutex);
        leaves = is_leaving;
      }
      if (!leaves) continue;
      has_left[static_cast<size_t>(rank)] = 1;
      if (rank > 0 && !told) told = write_all(connections[0], &kLeaves, 1);
      bool all = rank == 0;
      for (const char each : has_left) all = all && each != 0;
      if (!all) continue;
      close_all_left();
      set_all_left();
    }
  }
};

Lifeline::Lifeline(Rendezvous& rendezvous, std::function<void(const std::string& text)> on_death)
    : state_(std::make_shared<State>()) {
  State& state = *state_;
  state.rank = rendezvous.options().rank;
  state.size = rendezvous.options().size;
  state.on_death = std::move(on_death);
  state.connections.assign(static_cast<size_t>(state.size), -1);
  state.has_left.assign(static_cast<size_t>(state.size), 0);
  state.wake = ::eventfd(0, EFD_CLOEXEC);
  if (state.wake < 0) throw_socket("eventfd");
  if (state.rank == 0) {
    int port = 0;
    const int listener = listen_anywhere(port);
    rendezvous.set("lifeline", std::to_string(port));
    // The others are about to come: they have met at the rendezvous.
    const double seconds = rendezvous.options().timeout_s;
    for (int come = 1; come < state.size; ++come) {
      pollfd waiting{listener, POLLIN, 0};
      int32_t rank = -1;
      const int fd = ::poll(&waiting, 1, static_cast<int>(seconds * 1000)) > 0
                         ? ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC)
                         : -1;
      if (fd < 0 || !read_all(fd, &rank, sizeof rank) || rank < 1 || rank >= state.size) {
        ::close(listener);
        if (fd >= 0) ::close(fd);
        throw_user_error("only ", come, " of ", state.size, " ranks came to be watched over within ", seconds,
                         " s; one of them ended early: see what it says");
      }
      state.connections[static_cast<size_t>(rank)] = fd;
    }
    ::close(listener);
  } else {
    const int fd = connect_to(rendezvous.options().host, rendezvous.get("lifeline"));
    state.connections[0] = fd;
    const int32_t rank = state.rank;
    if (!write_all(fd, &rank, sizeof rank)) throw_socket("send");
  }
  for (const int fd : state.connections)
    if (fd >= 0) keep_alive(fd);
  state.watcher = std::thread([state = state_.get()] { state->watch(); });
}

Lifeline::~Lifeline() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->ends = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t ignored = ::write(state_->wake, &one, sizeof one);
  state_->watcher.join();
}

void Lifeline::leave() {
  {
    const std::lock_guard lock(state_->mutex);
    state_->is_leaving = true;
  }
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t ignored = ::write(state_->wake, &one, sizeof one);
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [&] { return state_->all_left || state_->death.has_value(); });
}

std::optional<std::string> Lifeline::death_within(double seconds) const {
  std::unique_lock lock(state_->mutex);
  state_->changed.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return state_->death.has_value(); });
  return state_->death;
}

}  // namespace moebius::parallel
