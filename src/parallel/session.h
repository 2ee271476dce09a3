// A process among others: finds them, makes sure that all mean the same run, and has the mesh.
#pragma once

#include <memory>

#include "config/train_config.h"
#include "parallel/environment.h"
#include "parallel/mesh.h"
#include "parallel/rendezvous.h"

namespace moebius::parallel {

class Session {
 public:
  // All ranks at the same time. UserError, before anything large is allocated: the processes cannot be laid
  // out as the config says (layout.h), the ranks do not find each other (rendezvous.h), or their configs
  // differ (names the field and both values). The first rank logs who started it and the layout.
  Session(const Environment& environment, const config::RunConfig& config, bool on_cuda);
  // All ranks, at the end of a run that went well: waits until the others have come as far.
  void leave();

  const Mesh& mesh() const { return *mesh_; }

 private:
  std::unique_ptr<Rendezvous> rendezvous_;
  std::unique_ptr<Mesh> mesh_;
};

// UserError when the backend that the config asks for cannot serve.
void check_backend(const config::ParallelConfig& config, bool on_cuda);

}  // namespace moebius::parallel
