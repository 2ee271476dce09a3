// Serves a Registry while it lives: Prometheus text on http://HOST:PORT/metrics, a page for people on / that
// draws it, with the numbers' past since the start (/history.json).
#pragma once

#include <memory>
#include <string>

#include "telemetry/metrics.h"

namespace moebius::telemetry {

class Exporter {
 public:
  // `address` is "PORT", "HOST:PORT" or "[IPv6]:PORT"; without a host only this machine can connect
  // (127.0.0.1). Port 0 takes a free one. UserError when the address is malformed, the port in use or not
  // permitted. The registry must outlive the exporter.
  Exporter(const Registry& registry, const std::string& address);
  ~Exporter();
  Exporter(const Exporter&) = delete;
  Exporter& operator=(const Exporter&) = delete;

  int port() const;
  std::string url() const;

 private:
  struct Server;
  std::unique_ptr<Server> server_;
};

}  // namespace moebius::telemetry
