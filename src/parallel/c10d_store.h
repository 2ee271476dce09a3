// What a Rendezvous holds, for the files that speak to c10d.
#pragma once

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "parallel/rendezvous.h"

namespace moebius::parallel {

struct Rendezvous::Store {
  Options options;
  c10::intrusive_ptr<c10d::TCPStore> store;
};

}  // namespace moebius::parallel
