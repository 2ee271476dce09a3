// Numbers as people read them. Three significant digits; never scientific notation for sizes in use.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace moebius {

// "3.14" with 2 decimals; for magnitudes below 1e40.
inline std::string format_fixed(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

namespace units_detail {
// Three significant digits for 1 <= |value| < 1000.
inline std::string three_digits(double value) {
  const double magnitude = std::fabs(value);
  return format_fixed(value, magnitude < 9.995 ? 2 : magnitude < 99.95 ? 1 : 0);
}
}  // namespace units_detail

// "512 B", "1.50 KiB", "29.9 GiB".
inline std::string format_bytes(int64_t num_bytes) {
  static constexpr const char* kSuffix[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  double value = static_cast<double>(num_bytes);
  int suffix = 0;
  while (std::fabs(value) >= (suffix == 0 ? 1024 : 999.5) && suffix < 6) {
    value /= 1024;
    ++suffix;
  }
  if (suffix == 0) return std::to_string(num_bytes) + " B";
  return units_detail::three_digits(value) + " " + kSuffix[suffix];
}

// "950", "1.23M", "46.7B" (10^3 k, 10^6 M, 10^9 B, 10^12 T).
inline std::string format_count(double count) {
  static constexpr const char* kSuffix[] = {"", "k", "M", "B", "T", "Q"};
  if (!std::isfinite(count)) return std::isnan(count) ? "nan" : count > 0 ? "inf" : "-inf";
  double value = count;
  int suffix = 0;
  while (std::fabs(value) >= 999.5 && suffix < 5) {
    value /= 1000;
    ++suffix;
  }
  if (suffix == 0 && value == std::floor(value)) return std::to_string(static_cast<int64_t>(value));
  return units_detail::three_digits(value) + kSuffix[suffix];
}

// "350 us", "12.3 ms", "4.20 s", "3m 07s", "2h 05m", "3d 04h".
inline std::string format_duration(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds < 0) return "-" + format_duration(-seconds);
  if (seconds < 0.9995e-3) return units_detail::three_digits(seconds * 1e6) + " us";
  if (seconds < 0.9995) return units_detail::three_digits(seconds * 1e3) + " ms";
  if (seconds < 59.95) return units_detail::three_digits(seconds) + " s";
  const auto pair = [](long long big, const char* big_unit, long long small, const char* small_unit) {
    char text[64];
    std::snprintf(text, sizeof text, "%lld%s %02lld%s", big, big_unit, small, small_unit);
    return std::string(text);
  };
  const long long whole = std::llround(seconds);
  if (whole < 3600) return pair(whole / 60, "m", whole % 60, "s");
  if (whole < 86400) return pair(whole / 3600, "h", whole / 60 % 60, "m");
  return pair(whole / 86400, "d", whole / 3600 % 24, "h");
}

// format_rate(9120, "tokens") = "9.12k tokens/s".
inline std::string format_rate(double per_second, std::string_view what) {
  return format_count(per_second) + " " + std::string(what) + "/s";
}

}  // namespace moebius
