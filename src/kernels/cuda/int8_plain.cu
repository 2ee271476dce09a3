// Variants of the integer product: out = a x w^T, rows as they are.
#include <iterator>

#include "kernels/cuda/int8_gemm.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr bool kSwiglu = false;
template <int ROWS, int COLUMNS, bool PINGPONG, int BLOCKS = 1, int DIGITS = 1>
using Kernel = Int8Kernel<ROWS, COLUMNS, PINGPONG, kSwiglu, DIGITS, BLOCKS>;

constexpr Int8Variant kVariants[] = {
    int8_variant<Kernel<128, 192, true>>("128x192 pingpong"),
    int8_variant<Kernel<128, 256, false>>("128x256 cooperative"),
    int8_variant<Kernel<128, 128, true>>("128x128 pingpong"),
    int8_variant<Kernel<128, 128, true, 2>>("128x128 pingpong, pairs"),
    int8_variant<Kernel<128, 256, false, 2>>("128x256 cooperative, pairs"),
    int8_variant<Kernel<64, 128, true>>("64x128 pingpong"),
    int8_variant<Kernel<64, 64, true>>("64x64 pingpong"),
    int8_variant<Kernel<64, 32, true>>("64x32 pingpong"),
    int8_variant<Kernel<64, 192, true, 1, 2>>("64x192 pingpong, two digits"),
    int8_variant<Kernel<64, 64, true, 1, 2>>("64x64 pingpong, two digits"),
};

}  // namespace

Int8Variants int8_plain_variants() {
  return {std::begin(kVariants), std::end(kVariants)};
}

}  // namespace moebius::kernels::cuda
