// An HTTP server on loopback that answers as a test says. Only for tests.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/check.h"

namespace moebius {

struct ReplayAnswer {
  int status = 200;
  std::string body;
  std::string headers;  // "Retry-After: 7\r\n"
};

class ReplayServer {
 public:
  // `answer` gets the request line, headers and body; it is called on the server's thread.
  explicit ReplayServer(std::function<ReplayAnswer(const std::string&)> answer) : answer_(std::move(answer)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    MOEBIUS_CHECK_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    MOEBIUS_CHECK_EQ(::listen(listener_, 8), 0);
    MOEBIUS_CHECK_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~ReplayServer() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }
  ReplayServer(const ReplayServer&) = delete;
  ReplayServer& operator=(const ReplayServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  std::vector<std::string> requests() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return requests_;
  }

 private:
  static bool is_whole(const std::string& request) {
    const size_t end = request.find("\r\n\r\n"), length = request.find("Content-Length: ");
    if (end == std::string::npos) return false;
    return length == std::string::npos || length > end ||
           request.size() >= end + 4 + std::stoul(request.substr(length + 16));
  }
  void serve() {
    for (;;) {
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) return;
      std::string request;
      char buffer[4096];
      for (ssize_t got = 1; got > 0 && !is_whole(request);) {
        got = ::read(fd, buffer, sizeof buffer);
        if (got > 0) request.append(buffer, static_cast<size_t>(got));
      }
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        requests_.push_back(request);
      }
      const ReplayAnswer answer = answer_(request);
      const std::string reply = "HTTP/1.1 " + std::to_string(answer.status) + " x\r\nConnection: close\r\n" +
                                answer.headers + "Content-Length: " + std::to_string(answer.body.size()) +
                                "\r\n\r\n" + answer.body;
      for (size_t sent = 0; sent < reply.size();) {
        const ssize_t put = ::send(fd, reply.data() + sent, reply.size() - sent, MSG_NOSIGNAL);
        if (put <= 0) break;
        sent += static_cast<size_t>(put);
      }
      ::close(fd);
    }
  }

  std::function<ReplayAnswer(const std::string&)> answer_;
  int listener_ = -1, port_ = 0;
  mutable std::mutex mutex_;
  std::vector<std::string> requests_;
  std::thread thread_;
};

}  // namespace moebius
