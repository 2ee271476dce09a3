#include <cstring>

#include "kernels/cpu/blocks.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/permute.cpp"
#include <hwy/foreach_target.h>  // IWYU pragma: keep
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace moebius::kernels::cpu {
namespace HWY_NAMESPACE {

template <class T>
void combine_tokens(const CombineRowsArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kMaxTopK = 32;
  const F32 d;
  const int64_t width = a.width;
  for (int64_t t = begin; t < end; ++t) {
    const T* add = a.add == nullptr ? nullptr : static_cast<const T*>(a.add) + t * width;
    T* out = static_cast<T*>(a.out) + t * width;
    const T* rows[kMaxTopK];
    float weights[kMaxTopK];
    int64_t count = 0;
    for (int64_t k = 0; k < a.top_k; ++k) {
      const int32_t row = a.inverse[t * a.top_k + k];
      if (row < 0) continue;
      rows[count] = static_cast<const T*>(a.rows) + row * width;
      weights[count++] = a.weights == nullptr ? 1.0f : a.weights[t * a.top_k + k];
    }
    for (int64_t i = 0; i < width; i += lanes()) {
      const Part part(width - i);
      Vf sum = add == nullptr ? hn::Zero(d) : part.load(add + i);
      for (int64_t k = 0; k < count; ++k)
        sum = hn::MulAdd(hn::Set(d, weights[k]), part.load(rows[k] + i), sum);
      part.store(sum, out + i);
    }
  }
}

void CombineTokens(const CombineRowsArgs& a, int64_t begin, int64_t end) {
  a.dtype == DType::f32 ? combine_tokens<float>(a, begin, end) : combine_tokens<Bf16>(a, begin, end);
}

}  // namespace HWY_NAMESPACE
}  // namespace moebius::kernels::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace moebius::kernels::cpu {

HWY_EXPORT(CombineTokens);

void gather_rows(const GatherRowsArgs& args, Stream) {
  const int64_t row_bytes = args.width * size_of(args.dtype);
  const char* src = static_cast<const char*>(args.src);
  char* rows = static_cast<char*>(args.rows);
  parallel_for(0, args.num_rows, row_grain(args.width), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t slot = args.order[r];
      if (slot < 0) {
        std::memset(rows + r * row_bytes, 0, static_cast<size_t>(row_bytes));
      } else {
        std::memcpy(rows + r * row_bytes, src + slot / args.top_k * row_bytes,
                    static_cast<size_t>(row_bytes));
      }
    }
  });
}

void combine_rows(const CombineRowsArgs& args, Stream) {
  parallel_for(0, args.num_tokens, row_grain(args.width * args.top_k), [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(CombineTokens)(args, begin, end);
  });
}

}  // namespace moebius::kernels::cpu
#endif  // HWY_ONCE
