// Minimum cut with lower bounds on the flow, for small graphs.
#pragma once

#include <cstddef>
#include <vector>

namespace moebius::energy::clocks {

class FlowGraph {
 public:
  static constexpr double kInfinite = 1e300;
  explicit FlowGraph(size_t num_nodes) : edges_of_(num_nodes) {}

  // An edge that carries at least `least` and at most `most`. Returns its index.
  size_t add(size_t from, size_t to, double least, double most);

  // The side of the source after a maximal flow, per node; empty when no flow keeps the bounds or the cut is
  // infinite. Call once.
  std::vector<bool> cut(size_t source, size_t sink);

 private:
  struct Edge {
    size_t to = 0;
    double room = 0;  // what more can flow
  };
  double push(size_t from, size_t sink);
  double flow(size_t source, size_t sink);

  std::vector<Edge> edges_;  // edge i and i ^ 1 are each other's way back
  std::vector<std::vector<size_t>> edges_of_;
  std::vector<double> demand_;  // of the lower bounds, per node
  double largest_ = 0;
};

}  // namespace moebius::energy::clocks
