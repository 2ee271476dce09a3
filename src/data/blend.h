// Which source the n-th sequence of a run comes from, and the how-manieth of that source it is.
#pragma once

#include <cstdint>
#include <vector>

namespace moebius::data {

// Deals sequences to weighted sources without keeping counts: a pure function of n. The sources are the
// leaves of a balanced binary tree; a node whose left half has the share p sends its n-th sequence left when
// floor((n + 1) p) > floor(n p), so floor(n p) of the first n went left. Every count stays within
// log2(sources) of its share.
class Blend {
 public:
  // Weights are >= 0 with a positive sum; they need not add up to one.
  explicit Blend(const std::vector<double>& weights);

  struct Pick {
    int64_t source;
    int64_t index;  // how many earlier sequences came from this source
  };
  Pick pick(int64_t n) const;

 private:
  struct Node {
    int64_t left, right;  // children; a leaf has left == -1 and its source in `right`
    uint64_t left_share;  // p * 2^48
  };
  int64_t build(const std::vector<double>& weights, int64_t begin, int64_t end);

  std::vector<Node> nodes_;
  int64_t root_;
};

}  // namespace moebius::data
