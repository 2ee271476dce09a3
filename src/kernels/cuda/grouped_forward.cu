// Variants of out = a x w^T per group.
#include <iterator>

#include "kernels/cuda/grouped_launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr GroupedGemmKind kForward = GroupedGemmKind::forward;
template <Epilogue EPILOGUE, int COLUMNS, Gather GATHER = Gather::none, bool PAIRS = false>
using Forward = GroupedKernel<kForward, EPILOGUE, COLUMNS, COLUMNS != 256, GATHER, PAIRS>;

constexpr GroupedVariant kVariants[] = {
    variant_of<Forward<Epilogue::store, 192>>(),
    variant_of<Forward<Epilogue::store, 256>>(),
    variant_of<Forward<Epilogue::store, 192, Gather::none, true>>(),
    variant_of<Forward<Epilogue::store, 256, Gather::none, true>>(),
    variant_of<Forward<Epilogue::store, 192, Gather::a>>(),
    variant_of<Forward<Epilogue::store, 256, Gather::a>>(),
    variant_of<Forward<Epilogue::store, 192, Gather::a, true>>(),
    variant_of<Forward<Epilogue::store, 256, Gather::a, true>>(),
    variant_of<Forward<Epilogue::swiglu, 192>>(),
    variant_of<Forward<Epilogue::swiglu, 256>>(),
    variant_of<Forward<Epilogue::swiglu, 192, Gather::none, true>>(),
    variant_of<Forward<Epilogue::swiglu, 256, Gather::none, true>>(),
    variant_of<Forward<Epilogue::swiglu, 192, Gather::a>>(),
    variant_of<Forward<Epilogue::swiglu, 256, Gather::a>>(),
    variant_of<Forward<Epilogue::swiglu, 192, Gather::a, true>>(),
    variant_of<Forward<Epilogue::swiglu, 256, Gather::a, true>>(),
};

}  // namespace

GroupedVariants forward_variants() {
  return {std::begin(kVariants), std::end(kVariants)};
}

}  // namespace moebius::kernels::cuda
