#include "base/http.h"

#include <curl/curl.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <type_traits>
#include <utility>

// Macros of its header that would be in the way of the names below.
#undef curl_easy_setopt
#undef curl_easy_getinfo

namespace moebius {
namespace {

// libcurl is loaded at the first request: it brings thirty libraries along, which no other command
// should wait for. Its headers alone are needed to build.
struct Curl {
  decltype(&::curl_global_init) global_init = nullptr;
  decltype(&::curl_easy_init) easy_init = nullptr;
  decltype(&::curl_easy_reset) easy_reset = nullptr;
  decltype(&::curl_easy_setopt) setopt = nullptr;
  decltype(&::curl_easy_perform) easy_perform = nullptr;
  decltype(&::curl_easy_getinfo) getinfo = nullptr;
  decltype(&::curl_easy_strerror) easy_strerror = nullptr;
  decltype(&::curl_easy_cleanup) easy_cleanup = nullptr;
  decltype(&::curl_slist_append) slist_append = nullptr;
  decltype(&::curl_slist_free_all) slist_free_all = nullptr;
  std::string problem;  // why there is none

  static const Curl& get() {
    static const Curl curl = load();
    return curl;
  }

 private:
  static Curl load() {
    Curl curl;
    void* library = ::dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = ::dlopen("libcurl-gnutls.so.4", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
      curl.problem = "libcurl.so.4 is not installed (apt install libcurl4)";
      return curl;
    }
    const auto find = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      if (function == nullptr && curl.problem.empty()) curl.problem = std::string("libcurl has no ") + name;
    };
    find(curl.global_init, "curl_global_init");
    find(curl.easy_init, "curl_easy_init");
    find(curl.easy_reset, "curl_easy_reset");
    find(curl.setopt, "curl_easy_setopt");
    find(curl.easy_perform, "curl_easy_perform");
    find(curl.getinfo, "curl_easy_getinfo");
    find(curl.easy_strerror, "curl_easy_strerror");
    find(curl.easy_cleanup, "curl_easy_cleanup");
    find(curl.slist_append, "curl_slist_append");
    find(curl.slist_free_all, "curl_slist_free_all");
    if (curl.problem.empty() && curl.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
      curl.problem = "libcurl does not start";
    return curl;
  }
};

struct Body {
  std::string text;
  size_t max_bytes;
};

size_t append_body(char* data, size_t size, size_t count, void* given) {
  auto& body = *static_cast<Body*>(given);
  if (body.text.size() + size * count > body.max_bytes) return 0;  // ends the transfer
  body.text.append(data, size * count);
  return size * count;
}

class CurlClient final : public HttpClient {
 public:
  CurlClient(double timeout_s, size_t max_bytes)
      : timeout_ms_(static_cast<long>(1000 * timeout_s)), max_bytes_(max_bytes) {}
  ~CurlClient() override {
    if (handle_ != nullptr) Curl::get().easy_cleanup(handle_);
  }

  Result<HttpReply> send(const HttpRequest& request) override {
    const Curl& api = Curl::get();
    if (!api.problem.empty()) return make_error(ErrorKind::kUnavailable, api.problem);
    if (handle_ == nullptr) handle_ = api.easy_init();
    if (handle_ == nullptr) return make_error(ErrorKind::kUnavailable, "libcurl has no memory");
    CURL* const curl = handle_;
    api.easy_reset(curl);  // connections stay
    Body body{{}, max_bytes_};
    curl_slist* raw = nullptr;
    for (const std::string& each : request.headers) raw = api.slist_append(raw, each.c_str());
    const std::unique_ptr<curl_slist, void (*)(curl_slist*)> list(raw, api.slist_free_all);
    char reason[CURL_ERROR_SIZE] = {};
    api.setopt(curl, CURLOPT_URL, request.url.c_str());
    api.setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    api.setopt(curl, CURLOPT_HTTPHEADER, list.get());
    api.setopt(curl, CURLOPT_WRITEFUNCTION, append_body);
    api.setopt(curl, CURLOPT_WRITEDATA, &body);
    if (request.method == "POST") {
      api.setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(request.body.size()));
      api.setopt(curl, CURLOPT_POSTFIELDS, request.body.c_str());
    } else if (request.method != "GET") {
      api.setopt(curl, CURLOPT_CUSTOMREQUEST, request.method.c_str());
    }
    if (!request.unix_socket.empty()) api.setopt(curl, CURLOPT_UNIX_SOCKET_PATH, request.unix_socket.c_str());
    api.setopt(curl, CURLOPT_TIMEOUT_MS, timeout_ms_);
    api.setopt(curl, CURLOPT_NOSIGNAL, 1L);
    api.setopt(curl, CURLOPT_ERRORBUFFER, reason);
    api.setopt(curl, CURLOPT_USERAGENT, "moebius");
    api.setopt(curl, CURLOPT_ACCEPT_ENCODING, "");
    const CURLcode code = api.easy_perform(curl);
    if (code == CURLE_OPERATION_TIMEDOUT)
      return make_error(ErrorKind::kTimeout, "no answer within ", timeout_ms_ / 1000, " s");
    if (code != CURLE_OK)
      return make_error(ErrorKind::kUnavailable, reason[0] != 0 ? reason : api.easy_strerror(code));
    long status = 0;
    curl_off_t retry_after = 0;
    api.getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    api.getinfo(curl, CURLINFO_RETRY_AFTER, &retry_after);
    return HttpReply{static_cast<int>(status), std::move(body.text), static_cast<double>(retry_after)};
  }

 private:
  CURL* handle_ = nullptr;
  long timeout_ms_;
  size_t max_bytes_;
};

}  // namespace

std::unique_ptr<HttpClient> make_curl_client(double timeout_s, size_t max_bytes) {
  return std::make_unique<CurlClient>(timeout_s, max_bytes);
}

std::string basic_authorization(const std::string& user, const std::string& password) {
  constexpr std::string_view kLetters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const std::string plain = user + ":" + password;
  std::string text = "Basic ";
  for (size_t i = 0; i < plain.size(); i += 3) {
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j)
      bits = bits << 8 | (i + j < plain.size() ? static_cast<unsigned char>(plain[i + j]) : 0U);
    for (size_t j = 0; j < 4; ++j) text += i + j > plain.size() ? '=' : kLetters[bits >> (18 - 6 * j) & 63];
  }
  return text;
}

}  // namespace moebius
