// A process among others: finds them, makes sure that all mean the same run, has the mesh, and ends when one
// of them is gone.
#pragma once

#include <memory>

#include "config/train_config.h"
#include "parallel/environment.h"
#include "parallel/mesh.h"

namespace moebius::parallel {

class Session {
 public:
  // All ranks at the same time; `device` is that of this one. UserError, before anything large is allocated:
  // the processes cannot be laid out as the config says (layout.h), their devices cannot serve it
  // (transport.h), the ranks do not find each other (rendezvous.h), or their configs differ (names the field
  // and both values, on all ranks). The first rank logs who started it, the layout and what moves data.
  //
  // From then on the process ends kSecondsToEnd after another rank has (lifeline.h) when it has not ended by
  // itself.
  Session(const Environment& environment, const config::RunConfig& config, at::Device device);
  ~Session();
  static constexpr double kSecondsToEnd = 6;

  // All ranks, at the end of a run that went well: waits until the others have come as far.
  void leave();

  // After CommunicationFailed: whether it came because another rank has ended, which has been said then.
  bool was_left_alone() const;
  // After CommunicationFailed: ends the process with this code, and with these words unless they are empty,
  // where exchanges are under way on a GPU that will never end; what destroys communicators would wait for
  // them. Returns elsewhere.
  void end_if_stuck(const std::string& text, int code) const;

  const Mesh& mesh() const;
  // That compute on this process' GPU, itself included.
  int ranks_on_device() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// Set by `--nproc` for the processes that it starts: it says itself which of them ended.
inline constexpr const char* kLaunchedVariable = "MOEBIUS_LAUNCHED";
// Set by it for rank 0: number of an open socket that listens at the port of the rendezvous.
inline constexpr const char* kListenVariable = "MOEBIUS_LISTEN_FD";
// Such a process ends with this code when it ends only because another has: often it is gone before that one.
inline constexpr int kExitLeftAlone = 71;
// What a process ends with then: that code, or 1 under other launchers.
int exit_code_when_left_alone();

}  // namespace moebius::parallel
