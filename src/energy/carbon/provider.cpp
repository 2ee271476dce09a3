#include "energy/carbon/provider.h"

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/error.h"

namespace moebius::energy::carbon {
namespace {

using Outcome = std::variant<Answer, Refused>;

std::string secret(const char* variable, const std::string& source) {
  const char* value = std::getenv(variable);
  if (value == nullptr || *value == 0)
    throw_user_error("--carbon ", source, " needs the environment variable ", variable,
                     "; set it to what the provider gave you");
  return value;
}

// A zone goes into a URL: letters, digits, '-' and '_'.
std::string checked_zone(const std::string& source, size_t colon) {
  const std::string zone = source.substr(colon + 1);
  const bool good = !zone.empty() && zone.find_first_not_of(
                                         "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                         "0123456789-_") == std::string::npos;
  if (!good)
    throw_user_error("--carbon '", source, "': '", zone, "' is no zone; use one such as DE or CAISO_NORTH");
  return zone;
}

// What a status that is not 200 means for the caller.
Refused refused(const HttpReply& reply, const std::string& who) {
  const std::string body = reply.body.substr(0, 120);
  switch (reply.status) {
    case 401:
    case 403:
      return {make_error(ErrorKind::kPermission, who, " refuses the token (", reply.status, "): ", body)};
    case 429:
      return {make_error(ErrorKind::kUnavailable, who, " asks for fewer requests (429)"),
              reply.retry_after_s};
    default:
      return {make_error(reply.status >= 500 ? ErrorKind::kUnavailable : ErrorKind::kInvalid, who,
                         " answers ", reply.status, ": ", body),
              reply.retry_after_s};
  }
}

class WebProvider : public Provider {
 public:
  WebProvider(std::string name, std::string url, std::shared_ptr<HttpClient> http)
      : name_(std::move(name)), url_(std::move(url)), http_(std::move(http)) {}
  std::string name() const override { return name_; }

 protected:
  template <class Parse>
  Outcome fetch(const std::string& path, const std::vector<std::string>& headers, const Parse& parse) {
    const Result<HttpReply> reply = http_->get(url_ + path, headers);
    if (!reply) return Refused{make_error(reply.error().kind, name_, ": ", reply.error().message)};
    if (reply->status != 200) return refused(*reply, name_);
    Result<Answer> answer = parse(reply->body);
    if (!answer) return Refused{make_error(answer.error().kind, name_, ": ", answer.error().message)};
    return *std::move(answer);
  }
  std::string name_, url_;
  std::shared_ptr<HttpClient> http_;
};

class ElectricityMaps final : public WebProvider {
 public:
  ElectricityMaps(std::string zone, std::string token, std::string url, std::shared_ptr<HttpClient> http)
      : WebProvider("Electricity Maps, " + zone, std::move(url), std::move(http)),
        zone_(std::move(zone)),
        headers_{"auth-token: " + token} {}
  Outcome history(double) override {
    return fetch("/v3/carbon-intensity/history?zone=" + zone_, headers_,
                 [this](std::string_view body) { return parse_electricity_maps(body, "history", zone_); });
  }
  Outcome forecast(double) override {
    return fetch("/v3/carbon-intensity/forecast?zone=" + zone_ + "&horizonHours=24", headers_,
                 [this](std::string_view body) { return parse_electricity_maps(body, "forecast", zone_); });
  }

 private:
  std::string zone_;
  std::vector<std::string> headers_;
};

class GreatBritain final : public WebProvider {
 public:
  GreatBritain(std::string url, std::shared_ptr<HttpClient> http)
      : WebProvider("UK Carbon Intensity, GB", std::move(url), std::move(http)) {}
  Outcome history(double now_s) override {
    constexpr double kDays = 13;  // the interface gives fourteen at most
    return fetch("/intensity/" + minute(now_s - kDays * 86400) + "/" + minute(now_s), {},
                 [](std::string_view body) { return parse_gb(body, GbValue::kActual); });
  }
  Outcome forecast(double now_s) override {
    return fetch("/intensity/" + minute(now_s) + "/fw24h", {},
                 [](std::string_view body) { return parse_gb(body, GbValue::kForecast); });
  }

 private:
  static std::string minute(double unix_s) { return iso_time(unix_s).substr(0, 16) + "Z"; }
};

class WattTime final : public WebProvider {
 public:
  WattTime(std::string region, std::string authorization, std::string url, std::shared_ptr<HttpClient> http)
      : WebProvider("WattTime, " + region, std::move(url), std::move(http)),
        region_(std::move(region)),
        authorization_(std::move(authorization)) {}
  Outcome history(double now_s) override {
    const std::string from = iso_time(now_s - 14 * 86400), to = iso_time(now_s);
    return ask("/v3/historical?region=" + region_ + "&signal_type=co2_moer&start=" + from + "&end=" + to);
  }
  Outcome forecast(double) override {
    return ask("/v3/forecast?region=" + region_ + "&signal_type=co2_moer");
  }

 private:
  // Tokens live half an hour: a refused one is fetched anew, once.
  Outcome ask(const std::string& path) {
    for (const bool again : {false, true}) {
      if (token_.empty()) {
        if (auto failed = log_in()) return *failed;
      }
      Outcome outcome = fetch(path, {"Authorization: Bearer " + token_},
                              [this](std::string_view body) { return parse_watttime(body, region_); });
      const Refused* refused = std::get_if<Refused>(&outcome);
      if (again || refused == nullptr || refused->error.kind != ErrorKind::kPermission) return outcome;
      token_.clear();
    }
    return Refused{make_error(ErrorKind::kPermission, name_, " refuses the token")};
  }
  std::optional<Refused> log_in() {
    const Result<HttpReply> reply = http_->get(url_ + "/login", {"Authorization: " + authorization_});
    if (!reply) return Refused{make_error(reply.error().kind, name_, ": ", reply.error().message)};
    if (reply->status != 200) return refused(*reply, name_);
    const auto json = nlohmann::json::parse(reply->body, nullptr, false);
    if (!json.is_object() || !json.contains("token") || !json["token"].is_string())
      return Refused{make_error(ErrorKind::kInvalid, name_, ": no token in the answer to /login")};
    token_ = json["token"];
    return std::nullopt;
  }
  std::string region_, authorization_, token_;
};

class FileProvider final : public Provider {
 public:
  FileProvider(std::filesystem::path file, Scope scope) : file_(std::move(file)), scope_(scope) { read(); }
  std::string name() const override { return "file " + file_.string(); }
  Outcome history(double now_s) override {
    try {
      read();
    } catch (const UserError& error) {  // being written, or gone: what was read before holds
      return Refused{make_error(ErrorKind::kInvalid, error.what())};
    }
    Answer answer{.readings = {}, .step_s = trace_.step_s, .signal = trace_.signal, .warnings = {}};
    int64_t begin = trace_.start_unix_s;
    for (const double value : trace_.values) {
      if (static_cast<double>(begin + trace_.step_s) > now_s) break;
      answer.readings.push_back({begin, value, false});
      begin += trace_.step_s;
    }
    return answer;
  }
  Outcome forecast(double) override {
    return Answer{.readings = {}, .step_s = trace_.step_s, .signal = trace_.signal, .warnings = {}};
  }

 private:
  void read() {
    std::error_code error;
    const auto changed = std::filesystem::last_write_time(file_, error);
    if (!trace_.values.empty() && !error && changed == read_at_) return;
    trace_ = read_trace(file_, {.scope = scope_});
    read_at_ = changed;
  }
  std::filesystem::path file_;
  Scope scope_;
  Trace trace_;
  std::filesystem::file_time_type read_at_;
};

}  // namespace

bool is_provider_name(std::string_view source) {
  return source == "gb" || source.starts_with("electricitymaps:") || source.starts_with("watttime:");
}

std::unique_ptr<Provider> make_provider(const std::string& source, std::shared_ptr<HttpClient> http,
                                        const ProviderOptions& options) {
  const auto url = [&](const char* own) { return options.url.empty() ? std::string(own) : options.url; };
  if (source == "gb")
    return std::make_unique<GreatBritain>(url("https://api.carbonintensity.org.uk"), std::move(http));
  const size_t colon = source.find(':');
  if (source.starts_with("electricitymaps:")) {
    return std::make_unique<ElectricityMaps>(checked_zone(source, colon),
                                             secret("ELECTRICITYMAPS_TOKEN", source),
                                             url("https://api.electricitymaps.com"), std::move(http));
  }
  if (source.starts_with("watttime:")) {
    const std::string user = secret("WATTTIME_USER", source), password = secret("WATTTIME_PASSWORD", source);
    return std::make_unique<WattTime>(checked_zone(source, colon), basic_authorization(user, password),
                                      url("https://api.watttime.org"), std::move(http));
  }
  if (!std::filesystem::exists(source))
    throw_user_error("--carbon '", source,
                     "' is no file, nor gb, electricitymaps:ZONE or watttime:REGION; check the name");
  return std::make_unique<FileProvider>(source, options.scope);
}

}  // namespace moebius::energy::carbon
