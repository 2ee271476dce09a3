// HTTP, for those whom this program asks: providers of grid data, Slurm's REST daemon. Behind an interface,
// so that tests need no network.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace moebius {

struct HttpReply {
  int status = 0;
  std::string body;
  double retry_after_s = 0;  // what the server asks for with 429 or 503; 0: nothing
};

struct HttpRequest {
  std::string method = "GET", url;
  std::vector<std::string> headers;
  std::string body;         // sent with POST
  std::string unix_socket;  // path of a socket to speak through, whatever host the url names; empty: none
};

class HttpClient {
 public:
  virtual ~HttpClient() = default;
  // Any reply of a server, whatever its status. kTimeout or kUnavailable when there is none.
  virtual Result<HttpReply> send(const HttpRequest& request) = 0;
  Result<HttpReply> get(const std::string& url, const std::vector<std::string>& headers) {
    return send({.method = "GET", .url = url, .headers = headers, .body = {}, .unix_socket = {}});
  }
};

// libcurl, loaded at the first request (kUnavailable where it is not installed); http and https alone,
// certificates checked, at most `timeout_s` a request and `max_bytes` a reply.
std::unique_ptr<HttpClient> make_curl_client(double timeout_s = 20, size_t max_bytes = size_t{8} << 20);

// "Basic ..." for an Authorization header.
std::string basic_authorization(const std::string& user, const std::string& password);

}  // namespace moebius
