#include "queue/plan_text.h"

#include <charconv>
#include <cstdio>
#include <tuple>

namespace moebius::queue {

std::string plan_text(const std::vector<Piece>& plan) {
  std::string text;
  char piece[80];
  for (const Piece& each : plan) {
    std::snprintf(piece, sizeof piece, "%s%.3f,%.3f,%d", text.empty() ? "" : ";", each.begin_s, each.end_s,
                  each.workers);
    text += piece;
  }
  return text;
}

std::vector<Piece> parse_plan(std::string_view text) {
  std::vector<Piece> plan;
  const char *at = text.data(), *const end = at + text.size();
  while (at < end) {
    Piece piece;
    auto [next, error] = std::from_chars(at, end, piece.begin_s);
    if (error != std::errc() || next == end || *next != ',') return {};
    std::tie(next, error) = [&] {
      const auto result = std::from_chars(next + 1, end, piece.end_s);
      return std::pair(result.ptr, result.ec);
    }();
    if (error != std::errc() || next == end || *next != ',') return {};
    const auto [last, workers_error] = std::from_chars(next + 1, end, piece.workers);
    if (workers_error != std::errc() || piece.workers < 1 || !(piece.begin_s < piece.end_s)) return {};
    plan.push_back(piece);
    if (last == end) break;
    if (*last != ';') return {};
    at = last + 1;
  }
  return plan;
}

}  // namespace moebius::queue
