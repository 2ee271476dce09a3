#include <limits>

#include "kernels/cuda/grouped_gemm.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/tensor_map.h"

namespace moebius::kernels::cuda {
namespace {

// bf16 tensor (depth, rows, width), contiguous; boxes of box_rows x 64 columns.
CUtensorMap map_of(const void* data, int64_t width, int64_t rows, int64_t depth, int box_rows) {
  return tensor_map(data, 2, width, rows, depth, width, width * rows, box_rows);
}

Epilogue epilogue_of(const GroupedGemmArgs& args) {
  return args.act != nullptr ? Epilogue::swiglu : Epilogue::store;
}

Gather gather_of(const GroupedGemmArgs& args) {
  if (args.a_index != nullptr) return Gather::a;
  return args.b_index != nullptr ? Gather::b : Gather::none;
}

GroupedVariants variants_of(GroupedGemmKind kind) {
  switch (kind) {
    case GroupedGemmKind::forward:
      return forward_variants();
    case GroupedGemmKind::input_grad:
      return input_grad_variants();
    case GroupedGemmKind::weight_grad:
      break;
  }
  return weight_grad_variants();
}

// Rows of each group's output, its columns, and what is summed over (one of rows and sum is ragged: 0).
struct Extents {
  int64_t rows, columns, sum;
};
Extents extents_of(const GroupedGemmArgs& args) {
  switch (args.kind) {
    case GroupedGemmKind::forward:
      return {0, args.n, args.k};
    case GroupedGemmKind::input_grad:
      return {0, args.k, args.n};
    case GroupedGemmKind::weight_grad:
      break;
  }
  return {args.n, args.k, 0};
}

// body(variant) for each that computes this product.
template <class Body>
void for_variants(const GroupedGemmArgs& args, const Body& body) {
  const Epilogue epilogue = epilogue_of(args);
  const Gather gather = gather_of(args);
  const GroupedVariants all = variants_of(args.kind);
  for (const GroupedVariant* v = all.begin; v != all.end; ++v)
    if (v->epilogue == epilogue && v->gather == gather && args.num_groups <= v->max_groups) body(*v);
}

// By relative_time; null where there is none.
const GroupedVariant* fastest_variant(const GroupedGemmArgs& args) {
  const Extents size = extents_of(args);
  const double mean_rows = static_cast<double>(args.num_rows) / static_cast<double>(args.num_groups);
  ProductForm product{};
  product.sums_rows = args.kind == GroupedGemmKind::weight_grad;
  product.gathered = gather_of(args) == Gather::none ? GatheredOperand::none
                     : gather_of(args) == Gather::a  ? GatheredOperand::rows
                                                     : GatheredOperand::columns;
  product.columns = size.columns;
  product.sum = product.sums_rows ? mean_rows : static_cast<double>(size.sum);
  product.mean_rows = product.sums_rows ? static_cast<double>(size.rows) : mean_rows;
  product.activates = epilogue_of(args) == Epilogue::swiglu;
  const GroupedVariant* fastest = nullptr;
  double least = std::numeric_limits<double>::infinity();
  for_variants(args, [&](const GroupedVariant& v) {
    const double time = relative_time({v.tile.columns, v.pingpong, v.pairs}, product);
    if (time >= least) return;
    least = time;
    fastest = &v;
  });
  return fastest;
}

bool aligned(const void* p) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0;
}

}  // namespace

const char* name_of(const GroupedVariant& variant) {
  return variant.name;
}

std::vector<const GroupedVariant*> grouped_variants(const GroupedGemmArgs& args) {
  std::vector<const GroupedVariant*> found;
  for_variants(args, [&](const GroupedVariant& v) { found.push_back(&v); });
  return found;
}

int32_t grouped_gemm_variants(const GroupedGemmArgs& args, const char** names, int32_t most) {
  int32_t count = 0;
  for_variants(args, [&](const GroupedVariant& v) {
    if (count < most) names[count] = v.name;
    ++count;
  });
  return count;
}

bool grouped_gemm_serves(const GroupedGemmArgs& args) {
  if (args.dtype != DType::bf16 || args.out_dtype != DType::bf16 || args.offsets == nullptr ||
      args.n % 8 != 0 || args.k % 8 != 0 || args.n == 0 || args.k == 0 || args.num_rows == 0 ||
      args.num_rows > INT32_MAX / 2 || args.num_groups == 0)
    return false;
  if (args.act != nullptr && args.n % 16 != 0) return false;
  for (const void* p :
       {args.a, args.b, static_cast<const void*>(args.out), static_cast<const void*>(args.act)})
    if (!aligned(p)) return false;
  const Extents size = extents_of(args);
  const int64_t most_tiles =
      ceil_div(size.columns, 128) * (size.rows > 0 ? ceil_div(size.rows, 128) * args.num_groups
                                                   : ceil_div(args.num_rows, 128) + args.num_groups);
  return most_tiles < INT32_MAX / 2 && compute_major() == 9 && fastest_variant(args) != nullptr;
}

void run_variant(const GroupedVariant& v, const GroupedGemmArgs& args, Stream stream) {
  const Extents size = extents_of(args);
  const bool ragged_sum = args.kind == GroupedGemmKind::weight_grad;
  GroupedKernelParams p{};
  p.tiles.tile = v.tile;
  p.tiles.ragged_sum = ragged_sum;
  p.tiles.rows = static_cast<int32_t>(size.rows);
  p.tiles.columns = static_cast<int32_t>(size.columns);
  // The side with fewer tiles is walked first, so that what is in flight shares most.
  const int64_t row_tiles =
      ceil_div(ragged_sum ? size.rows : ceil_div(args.num_rows, args.num_groups), p.tiles.tile.rows);
  p.tiles.pairs = v.pairs;
  p.tiles.rows_first = row_tiles <= ceil_div(size.columns, p.tiles.tile.columns);
  p.offsets = args.offsets;
  p.num_groups = static_cast<int32_t>(args.num_groups);
  p.sum = static_cast<int32_t>(size.sum);
  p.accumulate = args.accumulate;
  p.out = static_cast<bf16*>(args.out);
  p.act = static_cast<bf16*>(args.act);

  const int64_t width_a = args.kind == GroupedGemmKind::forward ? args.k : args.n;
  if (v.gather != Gather::a) p.a = map_of(args.a, width_a, args.num_rows, 1, v.box_a);
  if (args.kind == GroupedGemmKind::forward) {
    p.b = map_of(args.b, args.k, args.n, args.num_groups, v.box_b);
  } else if (v.gather != Gather::b) {
    p.b = ragged_sum ? map_of(args.b, args.k, args.num_rows, 1, v.box_b)
                     : map_of(args.b, args.k, args.n, args.num_groups, v.box_b);
  }
  if (v.gather != Gather::none) {
    const bool is_a = v.gather == Gather::a;
    p.src = static_cast<const bf16*>(is_a ? args.a : args.b);
    p.index = is_a ? args.a_index : args.b_index;
    p.divisor = fast_divisor(args.index_divisor);
    p.src_width = static_cast<int32_t>(is_a ? width_a : args.k);
  }
  v.launch(p, cuda_stream(stream));
}

void grouped_gemm(const GroupedGemmArgs& args, Stream stream) {
  const GroupedVariant* variant = nullptr;
  if (args.variant == 0) {
    variant = fastest_variant(args);
  } else {
    int32_t number = 0;
    for_variants(args, [&](const GroupedVariant& v) {
      if (++number == args.variant) variant = &v;
    });
  }
  MOEBIUS_CHECK(variant != nullptr, "no kernel for this grouped product");
  run_variant(*variant, args, stream);
}

}  // namespace moebius::kernels::cuda
