#include "kernels/cpu/amx_tiles.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

// As in gemm_tile_avx512bf16.cpp: the instructions are allowed per function, and run only after a look at the
// processor.
#define MOEBIUS_AMX_TILE __attribute__((target("amx-tile")))

namespace moebius::kernels::cpu {
namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Linux saves tile registers only for processes that asked for them. (Documentation/arch/x86/xstate.rst)
bool system_grants_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

bool processor_has_tiles() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx >> 24 & 1u) != 0;
}

}  // namespace

bool has_amx_tiles() {
  static const bool has = processor_has_tiles() && system_grants_tiles();
  return has;
}

MOEBIUS_AMX_TILE void set_up_amx_tiles() {
  static const TileConfig config;
  _tile_loadconfig(&config);
}

MOEBIUS_AMX_TILE void release_amx_tiles() {
  _tile_release();
}

}  // namespace moebius::kernels::cpu

#else

namespace moebius::kernels::cpu {

bool has_amx_tiles() {
  return false;
}
void set_up_amx_tiles() {}
void release_amx_tiles() {}

}  // namespace moebius::kernels::cpu

#endif
