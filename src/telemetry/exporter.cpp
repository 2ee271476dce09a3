#include "telemetry/exporter.h"

#include <civetweb.h>
#include <netdb.h>
#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <condition_variable>
#include <cstring>
#include <string_view>
#include <thread>

#include "base/clock.h"
#include "base/concat.h"
#include "base/error.h"
#include "telemetry/history.h"
#include "telemetry/status_page.h"

namespace moebius::telemetry {
namespace {

struct Address {
  std::string host;  // without brackets
  int port;
  std::string text() const {
    return concat(host.find(':') == std::string::npos ? host : "[" + host + "]", ":", port);
  }
};

Address parse_address(const std::string& text) {
  const size_t colon = text.rfind(':');
  std::string host = colon == std::string::npos ? "127.0.0.1" : text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  const std::string port_text = colon == std::string::npos ? text : text.substr(colon + 1);
  int port = -1;
  const auto [end, error] = std::from_chars(port_text.data(), port_text.data() + port_text.size(), port);
  if (host.empty() || error != std::errc() || end != port_text.data() + port_text.size() || port < 0 ||
      port > 65535) {
    throw_user_error("--metrics-port '", text,
                     "' is no address; use PORT or HOST:PORT with a port from 0 to 65535");
  }
  return {host, port};
}

// Binds the address once for a clear error: the server library only says that it did not start.
void check_can_bind(const Address& address) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICHOST | AI_NUMERICSERV;
  if (getaddrinfo(address.host.c_str(), std::to_string(address.port).c_str(), &hints, &found) != 0) {
    throw_user_error("--metrics-port: '", address.host,
                     "' is no IP address; use one of this machine, such as 127.0.0.1 or 0.0.0.0");
  }
  const int fd = ::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int error_number = fd < 0 ? errno : 0;
  if (fd >= 0) {
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (::bind(fd, found->ai_addr, found->ai_addrlen) != 0 || ::listen(fd, 1) != 0) error_number = errno;
    ::close(fd);
  }
  freeaddrinfo(found);
  if (error_number == 0) return;
  if (error_number == EADDRINUSE) {
    throw_user_error(
        "cannot serve metrics on ", address.text(), ": port ", address.port,
        " is in use; choose another --metrics-port (0 takes a free one) or stop what listens there");
  }
  const char* way_out = error_number == EACCES          ? "; choose a port from 1024 up"
                        : error_number == EADDRNOTAVAIL ? "; choose an address of this machine"
                                                        : "";
  throw_user_error("cannot serve metrics on ", address.text(), ": ", std::strerror(error_number), way_out);
}

prometheus::ClientMetric to_metric(const Family::Sample& sample, MetricKind kind) {
  prometheus::ClientMetric metric;
  for (const auto& [name, value] : sample.labels) metric.label.push_back({name, value});
  if (kind == MetricKind::counter) metric.counter.value = sample.value;
  if (kind == MetricKind::gauge) metric.gauge.value = sample.value;
  if (kind == MetricKind::histogram) {
    const Histogram::Snapshot& histogram = sample.histogram;
    metric.histogram.sample_count = histogram.count;
    metric.histogram.sample_sum = histogram.sum;
    uint64_t cumulative = 0;
    for (size_t i = 0; i < histogram.bounds.size(); ++i) {
      cumulative += histogram.counts[i];
      metric.histogram.bucket.push_back({cumulative, histogram.bounds[i]});
    }
  }
  return metric;
}

std::string to_text(const Registry& registry) {
  std::vector<prometheus::MetricFamily> families;
  for (const Family& family : registry.collect()) {
    prometheus::MetricFamily out;
    out.name = family.name;
    out.help = family.help;
    out.type = family.kind == MetricKind::counter ? prometheus::MetricType::Counter
               : family.kind == MetricKind::gauge ? prometheus::MetricType::Gauge
                                                  : prometheus::MetricType::Histogram;
    for (const Family::Sample& sample : family.samples) out.metric.push_back(to_metric(sample, family.kind));
    families.push_back(std::move(out));
  }
  return prometheus::TextSerializer().Serialize(families);
}

void send(mg_connection* connection, const char* type, std::string_view body) {
  mg_printf(connection,
            "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %zu\r\nCache-Control: no-store\r\n"
            "X-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            type, body.size());
  mg_write(connection, body.data(), body.size());
}

}  // namespace

struct Exporter::Server {
  Server(const Registry& registry_in, Address where)
      : registry(registry_in), history(registry_in), address(std::move(where)) {
    // Two threads: a scraper and a browser, not a crowd.
    const std::string listening = address.text();
    const char* options[] = {"listening_ports", listening.c_str(), "num_threads", "2", nullptr};
    const mg_callbacks none{};
    context = mg_start(&none, this, options);
    if (context == nullptr) throw std::runtime_error("the server does not start");
    mg_set_request_handler(context, "/", answer, this);
    mg_server_port port{};
    if (mg_get_server_ports(context, 1, &port) == 1) address.port = port.port;
    history.sample(system_clock().unix_seconds());  // the page has something to show from its first call on
    sampler = std::thread([this] { sample(); });
  }
  ~Server() {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      ending = true;
    }
    ended.notify_all();
    sampler.join();
    mg_stop(context);
  }

  static int answer(mg_connection* connection, void* self) {
    const Server& server = *static_cast<Server*>(self);
    const std::string_view uri = mg_get_request_info(connection)->local_uri;
    if (uri == "/metrics") {
      send(connection, "text/plain; version=0.0.4; charset=utf-8", to_text(server.registry));
    } else if (uri == "/history.json") {
      send(connection, "application/json", server.history.json());
    } else if (uri == "/") {
      send(connection, "text/html; charset=utf-8", status_page());
    } else {
      return mg_send_http_error(connection, 404, "%s", "there is /, /metrics and /history.json");
    }
    return 200;
  }

  void sample() {
    std::unique_lock<std::mutex> lock(mutex);
    while (!ending) {
      history.sample(system_clock().unix_seconds());
      ended.wait_for(lock, std::chrono::seconds(1));
    }
  }

  const Registry& registry;
  History history;
  Address address;
  mg_context* context = nullptr;
  std::mutex mutex;
  std::condition_variable ended;
  bool ending = false;
  std::thread sampler;
};

Exporter::Exporter(const Registry& registry, const std::string& address) {
  const Address where = parse_address(address);
  check_can_bind(where);
  try {
    server_ = std::make_unique<Server>(registry, where);
  } catch (const std::exception& error) {  // somebody took the port in between
    throw_user_error("cannot serve metrics on ", where.text(), ": ", error.what(),
                     "; choose another --metrics-port");
  }
}

Exporter::~Exporter() = default;

int Exporter::port() const {
  return server_->address.port;
}

std::string Exporter::url() const {
  return concat("http://", server_->address.text(), "/metrics");
}

}  // namespace moebius::telemetry
