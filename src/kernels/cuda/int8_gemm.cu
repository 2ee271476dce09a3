#include <algorithm>
#include <limits>

#include "kernels/cuda/int8_gemm.cuh"
#include "kernels/cuda/int8_gemm.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/tensor_map.h"

namespace moebius::kernels::cuda {
namespace {

// body(variant) for each that computes this product.
template <class Body>
void for_variants(const Int8GemmArgs& args, const Body& body) {
  for (const Int8Variants& all : {int8_plain_variants(), int8_swiglu_variants()})
    for (const Int8Variant* v = all.begin; v != all.end; ++v)
      if (v->swiglu == args.swiglu && v->digits == args.digits && args.num_groups <= v->max_groups) body(*v);
}

const Int8Variant* fastest_variant(const Int8GemmArgs& args) {
  const Int8Sizes size{static_cast<double>(args.num_rows), static_cast<double>(args.num_groups), args.n,
                       args.k};
  const Int8Variant* fastest = nullptr;
  double least = std::numeric_limits<double>::infinity();
  for_variants(args, [&](const Int8Variant& v) {
    const double time = int8_cycles(v.tile, size, num_multiprocessors());
    if (time >= least) return;
    least = time;
    fastest = &v;
  });
  return fastest;
}

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

void check_sizes(const Int8GemmArgs& args) {
  MOEBIUS_CHECK(args.offsets != nullptr || args.num_groups == 1, "offsets are needed for ", args.num_groups,
                " groups");
  MOEBIUS_CHECK_GE(args.index_divisor, 1);
  MOEBIUS_CHECK(args.k >= 1 && args.k <= kInt8MaxK, "sums over ", args.k, " values");
  MOEBIUS_CHECK(args.a_stride >= int8_padded_k(args.k) && args.a_stride % kInt8StepK == 0, "rows of ",
                args.a_stride, " bytes");
  MOEBIUS_CHECK(aligned(args.a) && aligned(args.b), "codes that are not aligned to 16 bytes");
  MOEBIUS_CHECK(args.digits == 1 || (args.digits == 2 && args.sums == nullptr), args.digits, " digits");
  MOEBIUS_CHECK(!args.swiglu || (args.n % 2 == 0 && args.sums == nullptr && args.bias == nullptr),
                "SwiGLU of ", args.n, " columns");
  MOEBIUS_CHECK(args.a_index == nullptr, "gathered codes: they are copied or made in the order of the rows");
  MOEBIUS_CHECK_GE(args.num_a_rows, args.scale_index == nullptr ? args.num_rows : 1);
  const int64_t most_tiles = ceil_div(args.n, 32) * (ceil_div(args.num_rows, 64) + args.num_groups);
  MOEBIUS_CHECK(args.num_rows < INT32_MAX / 2 && args.n < INT32_MAX / 2 && most_tiles < INT32_MAX / 2,
                "product of ", args.num_rows, " rows with ", args.num_groups, " x ", args.n);
}

}  // namespace

const char* name_of(const Int8Variant& variant) {
  return variant.name;
}
const Int8Tile& tile_of(const Int8Variant& variant) {
  return variant.tile;
}

bool int8_serves() {
  return compute_major() == 9;
}

std::vector<const Int8Variant*> int8_variants(const Int8GemmArgs& args) {
  std::vector<const Int8Variant*> found;
  for_variants(args, [&](const Int8Variant& v) { found.push_back(&v); });
  return found;
}

void run_int8_variant(const Int8Variant& v, const Int8GemmArgs& args, Stream stream) {
  if (args.num_rows == 0 || args.n == 0) return;
  check_sizes(args);
  Int8KernelParams p{};
  const Int8Tile& tile = v.tile;
  const int32_t rows = tile.rows, columns = tile.columns * tile.blocks;
  p.tiles.tile = {rows, columns};
  p.tiles.columns = static_cast<int32_t>(args.n);
  const int64_t mean_rows = ceil_div(args.num_rows, args.num_groups);
  // The side with fewer tiles is walked first, so that what is in flight shares most.
  p.tiles.rows_first = ceil_div(mean_rows, rows) <= ceil_div(args.n, columns);
  p.most_tiles = static_cast<int32_t>(
      ceil_div(args.n, columns) *
      (args.offsets == nullptr ? ceil_div(args.num_rows, rows) : args.num_rows / rows + args.num_groups));
  p.spread = mean_rows <= 64;
  p.offsets = args.offsets;
  p.num_groups = static_cast<int32_t>(args.num_groups);
  p.num_rows = static_cast<int32_t>(args.num_rows);
  const int64_t padded_n = int8_padded_n(args.n, Int8Layout::rows), padded_k = int8_padded_k(args.k);
  p.sum = static_cast<int32_t>(padded_k);
  p.n = static_cast<int32_t>(args.n);
  p.padded_n = static_cast<int32_t>(padded_n);
  p.a_scales = args.a_scales;
  p.b_scales = args.b_scales;
  p.bias = args.bias;
  p.num_a_rows = static_cast<int32_t>(args.num_a_rows);
  p.output = args.sums != nullptr            ? Int8Output::sums
             : args.out_dtype == DType::bf16 ? Int8Output::bf16
                                             : Int8Output::f32;
  p.out = args.sums != nullptr ? static_cast<void*>(args.sums) : args.out;
  p.gate_up = args.gate_up;
  p.whole = p.output == Int8Output::bf16 && args.bias == nullptr && args.n % (args.swiglu ? 16 : 8) == 0 &&
            aligned(args.out) && aligned(args.gate_up);
  p.scale_index = args.scale_index;
  p.divisor = fast_divisor(args.index_divisor);
  const int64_t code_rows = args.scale_index == nullptr ? args.num_a_rows : args.num_rows;
  // A box has no more rows than there are: filling up what is missing takes the copy engine longer than
  // copying. What then lies in the rest of the stage gives sums of rows that nobody stores.
  const auto box_rows = static_cast<int>(std::min<int64_t>(tile.rows / tile.blocks, code_rows));
  p.copied = (box_rows * tile.blocks * v.digits + tile.columns) * 128;
  p.a = tensor_map(args.a, 1, padded_k, code_rows, args.digits, args.a_stride, code_rows * args.a_stride,
                   box_rows);
  p.b =
      tensor_map(args.b, 1, padded_k, padded_n, args.num_groups, padded_k, padded_n * padded_k, tile.columns);
  v.launch(p, cuda_stream(stream));
}

void int8_gemm(const Int8GemmArgs& args, Stream stream) {
  const Int8Variant* variant = fastest_variant(args);
  MOEBIUS_CHECK(variant != nullptr, "no kernel for an integer product of ", args.num_groups, " groups");
  run_int8_variant(*variant, args, stream);
}

}  // namespace moebius::kernels::cuda
