// Variants of out = a x w per group.
#include <iterator>

#include "kernels/cuda/grouped_launch.cuh"

namespace moebius::kernels::cuda {
namespace {

constexpr GroupedGemmKind kInputGrad = GroupedGemmKind::input_grad;
template <Epilogue EPILOGUE, int COLUMNS, Gather GATHER = Gather::none, bool PAIRS = false>
using InputGrad = GroupedKernel<kInputGrad, EPILOGUE, COLUMNS, COLUMNS != 256, GATHER, PAIRS>;

constexpr GroupedVariant kVariants[] = {
    variant_of<InputGrad<Epilogue::store, 192>>(),
    variant_of<InputGrad<Epilogue::store, 256>>(),
    variant_of<InputGrad<Epilogue::store, 192, Gather::none, true>>(),
    variant_of<InputGrad<Epilogue::store, 256, Gather::none, true>>(),
    variant_of<InputGrad<Epilogue::store, 192, Gather::a>>(),
    variant_of<InputGrad<Epilogue::store, 256, Gather::a>>(),
    variant_of<InputGrad<Epilogue::store, 192, Gather::a, true>>(),
    variant_of<InputGrad<Epilogue::store, 256, Gather::a, true>>(),
};

}  // namespace

GroupedVariants input_grad_variants() {
  return {std::begin(kVariants), std::end(kVariants)};
}

}  // namespace moebius::kernels::cuda
