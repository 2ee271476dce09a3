// HTTP for the providers of grid data. Behind an interface, so that tests need no network.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace moebius::energy::carbon {

struct HttpReply {
  int status = 0;
  std::string body;
  double retry_after_s = 0;  // what the server asks for with 429 or 503; 0: nothing
};

class HttpClient {
 public:
  virtual ~HttpClient() = default;
  // Any reply of a server, whatever its status. kTimeout or kUnavailable when there is none.
  virtual Result<HttpReply> get(const std::string& url, const std::vector<std::string>& headers) = 0;
};

// libcurl, loaded at the first request (kUnavailable where it is not installed); http and https alone,
// certificates checked, at most `timeout_s` a request and 8 MiB a reply.
std::unique_ptr<HttpClient> make_curl_client(double timeout_s = 20);

// "Basic ..." for an Authorization header.
std::string basic_authorization(const std::string& user, const std::string& password);

}  // namespace moebius::energy::carbon
