// Providers of a grid's carbon intensity: what their interfaces answer, as gCO2eq per kWh.
//
//   Electricity Maps v3   average, life-cycle (or direct, as the account is set; the answer says which)
//   UK Carbon Intensity   average, direct (Great Britain)
//   WattTime v3           marginal, of the next kWh; lbs/MWh are converted
//   a file                as trace.h reads it; read again when it changes
//
// Average and marginal intensity answer different questions and are never mixed: every series carries the
// name of its signal.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/http.h"
#include "base/result.h"
#include "energy/carbon/trace.h"

namespace moebius::energy::carbon {

struct Reading {
  int64_t begin_unix_s = 0;
  double grams_per_kwh = 0;
  bool estimated = false;
};

struct Answer {
  std::vector<Reading> readings;  // rising
  int64_t step_s = 3600;
  std::string signal;  // "lifecycle average", "direct average", "marginal", "average, scope not stated"
  std::vector<std::string> warnings;
};

// A failure, and what the server says about trying again.
struct Refused {
  Error error;
  double retry_after_s = 0;
};

class Provider {
 public:
  virtual ~Provider() = default;
  virtual std::string name() const = 0;  // "Electricity Maps, DE"
  // Steps that are over, the last days of them; without any the provider keeps none.
  virtual std::variant<Answer, Refused> history(double now_unix_s) = 0;
  // From the step that holds now on; empty where the provider makes none.
  virtual std::variant<Answer, Refused> forecast(double now_unix_s) = 0;
};

struct ProviderOptions {
  std::string url;                  // instead of the provider's own
  Scope scope = Scope::kLifecycle;  // of files
};

// "electricitymaps:ZONE" ($ELECTRICITYMAPS_TOKEN), "gb", "watttime:REGION" ($WATTTIME_USER and
// $WATTTIME_PASSWORD) or a file. UserError for anything else and for a token that is not set.
std::unique_ptr<Provider> make_provider(const std::string& source, std::shared_ptr<HttpClient> http,
                                        const ProviderOptions& options = {});
bool is_provider_name(std::string_view source);  // not a file

// The bodies of their answers. kInvalid, with what is wrong and where, for anything that is not one; readings
// without a value yet (null) are left out.
// `list`: "history" or "forecast". `zone`, `region`: which an answer that names its own must be for; empty:
// any.
Result<Answer> parse_electricity_maps(std::string_view body, std::string_view list,
                                      std::string_view zone = {});
enum class GbValue { kActual, kForecast };
Result<Answer> parse_gb(std::string_view body, GbValue value);
Result<Answer> parse_watttime(std::string_view body, std::string_view region = {});

// Times as the three write them: 2031-01-01T12:00:00.000Z, 2031-01-01T12:00Z, 2031-01-01T12:00:00+00:00.
Result<int64_t> parse_utc(std::string_view text);

}  // namespace moebius::energy::carbon
