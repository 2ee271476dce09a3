// Libraries that look like the CUDA plug-in to the loader, for tests on machines without a GPU. What this one
// is, is chosen when it is compiled: MOEBIUS_STAND_IN_VERSION is its interface version; without it there is
// no entry.
#include "kernels/api/plugin.h"

#ifdef MOEBIUS_STAND_IN_VERSION
extern "C" __attribute__((visibility("default"))) const moebius::kernels::Plugin* moebius_cuda_plugin() {
  static const moebius::kernels::Plugin plugin = [] {
    moebius::kernels::Plugin p{};
    p.abi_version = MOEBIUS_STAND_IN_VERSION;
    p.device_count = [] { return 0; };
    return p;
  }();
  return &plugin;
}
#else
extern "C" __attribute__((visibility("default"))) int moebius_something_else() {
  return 0;
}
#endif
