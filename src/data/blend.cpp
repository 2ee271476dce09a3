#include "data/blend.h"

#include <cmath>
#include <numeric>

#include "base/check.h"

namespace moebius::data {
namespace {

constexpr int kShareBits = 48;

// floor(n * share)
int64_t part(int64_t n, uint64_t share) {
  return static_cast<int64_t>((static_cast<unsigned __int128>(n) * share) >> kShareBits);
}

}  // namespace

Blend::Blend(const std::vector<double>& weights) {
  MOEBIUS_CHECK(!weights.empty());
  MOEBIUS_CHECK(std::accumulate(weights.begin(), weights.end(), 0.0) > 0);
  root_ = build(weights, 0, static_cast<int64_t>(weights.size()));
}

int64_t Blend::build(const std::vector<double>& weights, int64_t begin, int64_t end) {
  if (end - begin == 1) {
    nodes_.push_back({-1, begin, 0});
    return static_cast<int64_t>(nodes_.size()) - 1;
  }
  const int64_t middle = begin + (end - begin) / 2;
  const double left_weight = std::accumulate(weights.begin() + begin, weights.begin() + middle, 0.0);
  const double right_weight = std::accumulate(weights.begin() + middle, weights.begin() + end, 0.0);
  const double sum = left_weight + right_weight;
  const double share = sum > 0 ? left_weight / sum : 0;
  const int64_t left = build(weights, begin, middle);
  const int64_t right = build(weights, middle, end);
  nodes_.push_back({left, right, static_cast<uint64_t>(std::llround(std::ldexp(share, kShareBits)))});
  return static_cast<int64_t>(nodes_.size()) - 1;
}

Blend::Pick Blend::pick(int64_t n) const {
  int64_t at = root_;
  while (nodes_[at].left >= 0) {
    const Node& node = nodes_[at];
    const int64_t before = part(n, node.left_share);
    if (part(n + 1, node.left_share) > before) {
      at = node.left;
      n = before;
    } else {
      at = node.right;
      n -= before;
    }
  }
  return {nodes_[at].right, n};
}

}  // namespace moebius::data
