// Which instruction sets the Highway sources of this folder are compiled for: the compiler's baseline, AVX2
// and AVX-512 (NEON on Arm). What lies between makes no difference to these loops and costs build time.
// Include before any header of Highway.
#pragma once

// Bits 4 and 6 are AVX3_SPR and AVX3_ZEN4 of Highway >= 1.0.5, which 1.0.3 does not name.
#define HWY_DISABLED_TARGETS                                                                         \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3_DL | (1LL << 4) | (1LL << 6) | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | \
   HWY_SVE2_128)
