// Variants of out = a^T x b per group, summed over the group's rows.
#include <iterator>

#include "kernels/cuda/grouped_launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr GroupedGemmKind kWeightGrad = GroupedGemmKind::weight_grad;
template <Epilogue EPILOGUE, int COLUMNS, Gather GATHER = Gather::none, bool PAIRS = false>
using WeightGrad = GroupedKernel<kWeightGrad, EPILOGUE, COLUMNS, COLUMNS != 256, GATHER, PAIRS>;

constexpr GroupedVariant kVariants[] = {
    variant_of<WeightGrad<Epilogue::store, 192>>(),
    variant_of<WeightGrad<Epilogue::store, 256>>(),
    variant_of<WeightGrad<Epilogue::store, 192, Gather::none, true>>(),
    variant_of<WeightGrad<Epilogue::store, 256, Gather::none, true>>(),
    variant_of<WeightGrad<Epilogue::store, 192, Gather::a>>(),
    variant_of<WeightGrad<Epilogue::store, 256, Gather::a>>(),
    variant_of<WeightGrad<Epilogue::store, 192, Gather::a, true>>(),
    variant_of<WeightGrad<Epilogue::store, 256, Gather::a, true>>(),
    variant_of<WeightGrad<Epilogue::store, 192, Gather::b>>(),
    variant_of<WeightGrad<Epilogue::store, 256, Gather::b>>(),
};

}  // namespace

GroupedVariants weight_grad_variants() {
  return {std::begin(kVariants), std::end(kVariants)};
}

}  // namespace moebius::kernels::cuda
