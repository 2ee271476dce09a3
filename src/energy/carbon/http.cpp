#include "energy/carbon/http.h"

#include <curl/curl.h>

#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "base/check.h"

namespace moebius::energy::carbon {
namespace {

constexpr size_t kMaxBodyBytes = size_t{8} << 20;

size_t append_body(char* data, size_t size, size_t count, void* body) {
  auto& text = *static_cast<std::string*>(body);
  if (text.size() + size * count > kMaxBodyBytes) return 0;  // ends the transfer
  text.append(data, size * count);
  return size * count;
}

class CurlClient final : public HttpClient {
 public:
  explicit CurlClient(double timeout_s) : timeout_ms_(static_cast<long>(1000 * timeout_s)) {
    static const CURLcode ready = curl_global_init(CURL_GLOBAL_DEFAULT);
    MOEBIUS_CHECK_EQ(static_cast<int>(ready), 0);
    handle_.reset(curl_easy_init());
    MOEBIUS_CHECK(handle_ != nullptr);
  }

  Result<HttpReply> get(const std::string& url, const std::vector<std::string>& headers) override {
    CURL* const curl = handle_.get();
    curl_easy_reset(curl);  // connections stay
    HttpReply reply;
    curl_slist* raw = nullptr;
    for (const std::string& each : headers) raw = curl_slist_append(raw, each.c_str());
    const std::unique_ptr<curl_slist, void (*)(curl_slist*)> list(raw, curl_slist_free_all);
    char reason[CURL_ERROR_SIZE] = {};
    curl_easy_setopt(curl, CURLOPT_URL, url.c_str());
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, list.get());
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, append_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &reply.body);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, timeout_ms_);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, reason);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "moebius");
    curl_easy_setopt(curl, CURLOPT_ACCEPT_ENCODING, "");
    const CURLcode code = curl_easy_perform(curl);
    if (code == CURLE_OPERATION_TIMEDOUT)
      return make_error(ErrorKind::kTimeout, "no answer within ", timeout_ms_ / 1000, " s");
    if (code != CURLE_OK)
      return make_error(ErrorKind::kUnavailable, reason[0] != 0 ? reason : curl_easy_strerror(code));
    long status = 0;
    curl_off_t retry_after = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(curl, CURLINFO_RETRY_AFTER, &retry_after);
    reply.status = static_cast<int>(status);
    reply.retry_after_s = static_cast<double>(retry_after);
    return reply;
  }

 private:
  struct Cleanup {
    void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
  };
  std::unique_ptr<CURL, Cleanup> handle_;
  long timeout_ms_;
};

}  // namespace

std::unique_ptr<HttpClient> make_curl_client(double timeout_s) {
  return std::make_unique<CurlClient>(timeout_s);
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

}  // namespace moebius::energy::carbon
