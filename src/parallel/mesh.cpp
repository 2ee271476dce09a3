#include "parallel/mesh.h"

#include "base/check.h"
#include "base/concat.h"
#include "parallel/c10d_communicator.h"
#include "parallel/nccl_communicator.h"
#include "parallel/rendezvous.h"
#include "parallel/solo_communicator.h"
#include "parallel/staged_communicator.h"
#include "parallel/watched_communicator.h"

namespace moebius::parallel {
namespace {

std::unique_ptr<Communicator> make_communicator(const Transport& transport, const Rendezvous& rendezvous,
                                                const GroupOptions& options) {
  if (transport.kind == Transport::Kind::nccl)
    return make_nccl_communicator(rendezvous, options, transport.device, transport.watch);
  std::unique_ptr<Communicator> gloo = make_gloo_communicator(rendezvous, options);
  if (transport.device.is_cpu()) return gloo;
  return std::make_unique<StagedCommunicator>(std::move(gloo));
}

}  // namespace

Mesh::Mesh(const Layout& layout, int rank, const Make& make) : layout_(layout), rank_(rank) {
  for (const Axis axis : kAxes) {
    std::unique_ptr<Communicator> made;
    if (layout.size(axis) == 1) {
      made = std::make_unique<SoloCommunicator>(name_of(axis));
    } else {
      made = make(axis, layout.group(axis, rank));
      MOEBIUS_CHECK_EQ(made->size(), layout.size(axis), name_of(axis));
      MOEBIUS_CHECK_EQ(made->rank(), layout.index(axis, rank), name_of(axis));
    }
    communicators_.emplace(axis, std::move(made));
  }
}

Mesh::Mesh(const Layout& layout, Rendezvous& rendezvous, double timeout_s, const Transport& transport,
           std::shared_ptr<Positions> positions, bool overlaps)
    : Mesh(layout, rendezvous.options().rank, [&](Axis axis, const std::vector<int>& ranks) {
        GroupOptions options;
        options.axis = name_of(axis);
        options.name = concat(options.axis, ".", ranks.front());
        options.world_rank = rendezvous.options().rank;
        options.rank = layout.index(axis, options.world_rank);
        options.size = static_cast<int>(ranks.size());
        options.timeout_s = timeout_s;
        options.positions = positions;
        return std::make_unique<WatchedCommunicator>(make_communicator(transport, rendezvous, options),
                                                     overlaps, transport.device);
      }) {
  for (const auto& [axis, communicator] : communicators_)
    if (const auto* const watched = dynamic_cast<const WatchedCommunicator*>(communicator.get()))
      watched_.push_back(watched);
}

double Mesh::waited_s() const {
  double sum = 0;
  for (const WatchedCommunicator* const each : watched_) sum += each->waited_s();
  return sum;
}

std::map<std::string, double> Mesh::waited_by_axis() const {
  std::map<std::string, double> seconds;
  for (const WatchedCommunicator* const each : watched_)
    if (each->waited_s() > 0) seconds[each->axis()] = each->waited_s();
  return seconds;
}

std::map<std::string, std::map<std::string, Traffic>> Mesh::traffic() const {
  std::map<std::string, std::map<std::string, Traffic>> sent;
  for (const auto& [axis, communicator] : communicators_)
    for (const auto& [collective, traffic] : communicator->traffic())
      if (traffic.sent_bytes > 0) sent[communicator->axis()][collective] = traffic;
  return sent;
}

}  // namespace moebius::parallel
