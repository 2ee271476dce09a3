#include "energy/clocks/min_cut.h"

#include <algorithm>
#include <queue>

namespace moebius::energy::clocks {

namespace {
constexpr double kTiny = 1e-12;  // of the largest finite capacity
}

size_t FlowGraph::add(size_t from, size_t to, double least, double most) {
  demand_.resize(edges_of_.size());
  const size_t index = edges_.size();
  edges_.push_back({to, most - least});
  edges_.push_back({from, 0});
  edges_of_[from].push_back(index);
  edges_of_[to].push_back(index + 1);
  demand_[to] += least;
  demand_[from] -= least;
  if (most < kInfinite) largest_ = std::max(largest_, most);
  return index;
}

// One shortest augmenting path (Edmonds and Karp).
double FlowGraph::push(size_t source, size_t sink) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  std::vector<size_t> by(edges_of_.size(), kNone);
  std::queue<size_t> open;
  open.push(source);
  while (!open.empty() && by[sink] == kNone) {
    const size_t node = open.front();
    open.pop();
    for (const size_t i : edges_of_[node]) {
      if (edges_[i].room <= kTiny * largest_ || by[edges_[i].to] != kNone || edges_[i].to == source) continue;
      by[edges_[i].to] = i;
      open.push(edges_[i].to);
    }
  }
  if (by[sink] == kNone) return 0;
  double amount = kInfinite;
  for (size_t node = sink; node != source; node = edges_[by[node] ^ 1].to)
    amount = std::min(amount, edges_[by[node]].room);
  for (size_t node = sink; node != source; node = edges_[by[node] ^ 1].to) {
    edges_[by[node]].room -= amount;
    edges_[by[node] ^ 1].room += amount;
  }
  return amount;
}

double FlowGraph::flow(size_t source, size_t sink) {
  double sum = 0;
  while (sum < kInfinite / 2) {
    const double amount = push(source, sink);
    if (amount <= 0) break;
    sum += amount;
  }
  return sum;
}

std::vector<bool> FlowGraph::cut(size_t source, size_t sink) {
  demand_.resize(edges_of_.size());
  // A flow that keeps the lower bounds: what they force in and out is balanced over two more nodes.
  const std::vector<double> demand = demand_;
  const size_t more_source = edges_of_.size(), more_sink = more_source + 1;
  edges_of_.resize(edges_of_.size() + 2);
  double needed = 0;
  for (size_t node = 0; node < demand.size(); ++node) {
    if (demand[node] > 0) {
      add(more_source, node, 0, demand[node]);
      needed += demand[node];
    } else if (demand[node] < 0) {
      add(node, more_sink, 0, -demand[node]);
    }
  }
  const size_t back = add(sink, source, 0, kInfinite);
  if (needed > 0 && flow(more_source, more_sink) < needed * (1 - 1e-9)) return {};
  edges_[back].room = edges_[back ^ 1].room = 0;
  if (flow(source, sink) >= kInfinite / 2) return {};
  std::vector<bool> reached(edges_of_.size());
  std::queue<size_t> open;
  open.push(source);
  reached[source] = true;
  while (!open.empty()) {
    const size_t node = open.front();
    open.pop();
    for (const size_t i : edges_of_[node]) {
      if (edges_[i].room <= kTiny * largest_ || reached[edges_[i].to]) continue;
      reached[edges_[i].to] = true;
      open.push(edges_[i].to);
    }
  }
  reached.resize(demand.size());
  return reached;
}

}  // namespace moebius::energy::clocks
