// The page at `/` of --metrics-port: one HTML file without outside resources that draws /metrics and
// /history.json.
#pragma once

#include <string_view>

namespace moebius::telemetry {

std::string_view status_page();

}  // namespace moebius::telemetry
