#include "config/batching.h"

#include <algorithm>
#include <charconv>
#include <optional>
#include <string_view>

#include "base/error.h"

namespace moebius::config {
namespace {

constexpr int64_t kMaxBuckets = 1024;
constexpr const char* kChoices = "window, pad, three-buckets, buckets:N, edges:A,B,..., pack or balanced";

std::optional<int64_t> parse_integer(std::string_view text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::vector<int64_t> parse_edges(std::string_view list, const std::string& text, const std::string& field) {
  std::vector<int64_t> edges;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const auto edge = parse_integer(list.substr(begin, end - begin));
    if (!edge || *edge < 1) {
      throw_user_error(field, " is '", text, "', but '", list.substr(begin, end - begin),
                       "' is no length; edges are whole numbers from 1, like edges:127,256");
    }
    if (!edges.empty() && *edge <= edges.back()) {
      throw_user_error(field, " is '", text, "', but its edges are out of order: ", *edge, " comes after ",
                       edges.back(), "; write them rising, each once");
    }
    edges.push_back(*edge);
    begin = end + 1;
  }
  return edges;
}

}  // namespace

Batching parse_batching(const std::string& text, const std::string& field) {
  if (text == "window") return {BatchingKind::window, 0, {}};
  if (text == "pad") return {BatchingKind::pad, 0, {}};
  if (text == "three-buckets") return {BatchingKind::three_buckets, 0, {127, 256}};
  if (text == "pack") return {BatchingKind::pack, 0, {}};
  if (text == "balanced") return {BatchingKind::balanced, 0, {}};
  const std::string_view view = text;
  if (view.starts_with("edges:")) return {BatchingKind::edges, 0, parse_edges(view.substr(6), text, field)};
  if (view.starts_with("buckets:")) {
    const auto count = parse_integer(view.substr(8));
    if (!count || *count < 1 || *count > kMaxBuckets) {
      throw_user_error(field, " is '", text, "', but the number of buckets must be 1 to ", kMaxBuckets,
                       "; use for example buckets:8, or edges:127,256 for edges of your own");
    }
    return {BatchingKind::buckets, *count, {}};
  }
  throw_user_error(field, " is '", text, "'; use ", kChoices);
}

}  // namespace moebius::config
