// The processes of a run on their axes: one communicator each.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/layout.h"
#include "parallel/transport.h"

namespace moebius::parallel {

class Positions;
class Rendezvous;
class WatchedCommunicator;

class Mesh {
 public:
  // All ranks at the same time. Axes of one rank get a communicator that does nothing. Tensors may lie on the
  // host or on the transport's device. `positions`: told of every exchange, for messages; may be null.
  // overlaps: see WatchedCommunicator.
  Mesh(const Layout& layout, Rendezvous& rendezvous, double timeout_s, const Transport& transport = {},
       std::shared_ptr<Positions> positions = nullptr, bool overlaps = true);
  // Communicators from elsewhere, for tests among threads: `make` is called for each axis of more than one
  // rank, with the world ranks of this rank's group.
  using Make = std::function<std::unique_ptr<Communicator>(Axis axis, const std::vector<int>& ranks)>;
  Mesh(const Layout& layout, int rank, const Make& make);

  const Layout& layout() const { return layout_; }
  int rank() const { return rank_; }  // in the world
  bool is_first() const { return rank_ == 0; }
  Communicator& on(Axis axis) const { return *communicators_.at(axis); }
  Communicator& world() const { return on(Axis::world); }
  Communicator& data() const { return on(Axis::data); }

  // What this rank has sent since the start, by axis and collective; axes that sent nothing are left out.
  std::map<std::string, std::map<std::string, Traffic>> traffic() const;
  // How long this process has stood still for other ranks since the start (watched_communicator.h).
  double waited_s() const;
  // The same by axis; of a pipeline's that is the time without work, too.
  std::map<std::string, double> waited_by_axis() const;

 private:
  Layout layout_;
  int rank_;
  std::map<Axis, std::unique_ptr<Communicator>> communicators_;
  std::vector<const WatchedCommunicator*> watched_;  // of those
};

}  // namespace moebius::parallel
