// Query/key normalisation and rotary positions, forward and backward (kernels/api/rope.h). One pass over the
// projection: a thread holds a chunk pair (elements i and i + head_dim/2 of a head), the lanes of a head
// share its statistics by shuffles, all heads of a token (norm `full`) by shared memory.
#include <algorithm>

#include "base/check.h"
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/host_device.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.cuh"

namespace moebius::kernels::cuda {
namespace {

struct Shape {
  int64_t num_tokens;
  int heads, kv_heads, head_dim, lanes;  // lanes: per head
  float eps;
  bool copies_values;  // else the output has them already
  MOEBIUS_HOST_DEVICE int all_heads() const { return heads + (copies_values ? 2 : 1) * kv_heads; }
};

// Tokens that a thread with C chunks of each loads before it works on the first.
MOEBIUS_HOST_DEVICE constexpr int tokens_in_flight(int chunks) {
  return chunks == 1 ? 4 : (chunks == 2 ? 2 : 1);
}

// Where a thread's chunk pair lies.
struct Place {
  int head;    // among queries, keys and, where they are copied, values
  int column;  // of the first half, within the head
  bool active;
};

template <int N>
__device__ __forceinline__ Place place_of(const Shape& s, int chunk) {
  const int lane = chunk & (s.lanes - 1);
  const int head = chunk / s.lanes;
  return {head, lane * N, head < s.all_heads() && lane * N < s.head_dim / 2};
}

// As loaded: half of the registers while it waits for its use.
template <class T, int N>
struct RawPair {
  Pack<T, N> first, second;

  __device__ __forceinline__ void load(const T* head, const Place& at, int half) {
    first = load_pack<T, N>(head + at.column);
    second = load_pack<T, N>(head + at.column + half);
  }
  __device__ __forceinline__ void store(T* head, const Place& at, int half) const {
    store_pack(head + at.column, first);
    store_pack(head + at.column + half, second);
  }
};

template <class T, int N>
struct Pair {
  float first[N], second[N];

  __device__ __forceinline__ void unpack_from(const RawPair<T, N>& raw) {
    unpack(raw.first, first);
    unpack(raw.second, second);
  }
  __device__ __forceinline__ void load(const T* head, const Place& at, int half) {
    RawPair<T, N> raw;
    raw.load(head, at, half);
    unpack_from(raw);
  }
  __device__ __forceinline__ void store(T* head, const Place& at, int half) const {
    store_pack(head + at.column, pack_of<T, N>(first));
    store_pack(head + at.column + half, pack_of<T, N>(second));
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < N; ++i) first[i] = second[i] = 0.0f;
  }
  __device__ __forceinline__ float sum_of_squares() const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < N; ++i) sum += first[i] * first[i] + second[i] * second[i];
    return sum;
  }
  // Turns by the position's angle; SIGN -1 turns back.
  template <int SIGN>
  __device__ __forceinline__ void turn(const float* cos_sin, const Place& at, int half) {
    float c[N], s[N];
    load_floats<N>(cos_sin + at.column, c);
    load_floats<N>(cos_sin + half + at.column, s);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float x1 = first[i], x2 = second[i], sn = SIGN * s[i];
      first[i] = x1 * c[i] - x2 * sn;
      second[i] = x2 * c[i] + x1 * sn;
    }
  }
};

// A block is (threads of a token, tokens). A thread has C chunks of a token (0: any number, one after the
// other) and up to four loads of them under way, of several tokens where a token gives it fewer. Heads behind
// queries and keys are copied. Turns back for SIGN -1. All threads of a block take part in its barriers.
template <class T, int N, int C, QkNorm NORM, int SIGN>
__global__ void __launch_bounds__(kRopeThreads, 2)
    rope_forward_kernel(const T* qkv_in,                        // (T, (H + 2 Hk) * head_dim)
                        T* qkv_out,                             // same, out; may be qkv_in without norm
                        const T* __restrict__ q_weight,         // (head_dim) or (H * head_dim)
                        const T* __restrict__ k_weight,         // (head_dim) or (Hk * head_dim)
                        float* __restrict__ inv_rms,            // (T, groups) out
                        const int32_t* __restrict__ positions,  // (T)
                        const float* __restrict__ cos_sin,      // (P, head_dim)
                        Shape s) {
  constexpr int kTokens = tokens_in_flight(C), kHeld = C > 0 ? C : 1;
  __shared__ float shared[NORM == QkNorm::full ? 2 * kTokens * 32 * 8 : 1];
  const int half = s.head_dim / 2, turned = s.heads + s.kv_heads;
  const int rounds = (s.all_heads() * s.lanes + blockDim.x - 1) / blockDim.x;
  int64_t token[kTokens], row[kTokens];
  int32_t position[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    token[t] = (static_cast<int64_t>(blockIdx.x) * kTokens + t) * blockDim.y + threadIdx.y;
    row[t] = token[t] * (static_cast<int64_t>(turned + s.kv_heads) * s.head_dim);
    position[t] = token[t] < s.num_tokens ? positions[token[t]] : 0;
  }
  RawPair<T, N> held[kHeld][kTokens];
  const auto place = [&](int round) { return place_of<N>(s, round * blockDim.x + threadIdx.x); };
  const auto load = [&](RawPair<T, N>(&raw)[kTokens], const Place& at) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (at.active && token[t] < s.num_tokens) raw[t].load(qkv_in + row[t] + at.head * s.head_dim, at, half);
    }
  };
#pragma unroll
  for (int c = 0; c < C; ++c) load(held[c], place(c));

  float inv[2 * kTokens];  // of all queries and all keys of each token
  if constexpr (NORM == QkNorm::full) {
#pragma unroll
    for (int t = 0; t < 2 * kTokens; ++t) inv[t] = 0.0f;
#pragma unroll
    for (int r = 0; r < (C > 0 ? C : rounds); ++r) {
      const Place at = place(r);
      if (C == 0) load(held[0], at);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (!at.active || at.head >= turned || token[t] >= s.num_tokens) continue;
        Pair<T, N> x;
        x.unpack_from(held[C > 0 ? r : 0][t]);
        inv[2 * t + (at.head < s.heads ? 0 : 1)] += x.sum_of_squares();
      }
    }
    sum_row(inv, shared);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int heads = part == 0 ? s.heads : s.kv_heads;
        inv[2 * t + part] = rsqrtf(inv[2 * t + part] / static_cast<float>(heads * s.head_dim) + s.eps);
        if (token[t] < s.num_tokens && threadIdx.x == 0) inv_rms[token[t] * 2 + part] = inv[2 * t + part];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < (C > 0 ? C : rounds); ++r) {
    const Place at = place(r);
    const bool query = at.head < s.heads, copied = at.head >= turned;
    if (C == 0) load(held[0], at);
    RawPair<T, N> weight;
    if constexpr (NORM != QkNorm::none) {
      const T* from = query ? q_weight : k_weight;
      if (NORM == QkNorm::full) from += (query ? at.head : at.head - s.heads) * s.head_dim;
      if (at.active && !copied) weight.load(from, at, half);
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const RawPair<T, N>& raw = held[C > 0 ? r : 0][t];
      const bool active = at.active && token[t] < s.num_tokens;
      T* const out = qkv_out + row[t] + at.head * s.head_dim;
      Pair<T, N> x;
      x.clear();
      if (active && !copied) x.unpack_from(raw);
      float scale = NORM == QkNorm::full ? inv[2 * t + (query ? 0 : 1)] : 1.0f;
      if constexpr (NORM == QkNorm::head) {
        const float sum = sum_lanes(x.sum_of_squares(), s.lanes);
        scale = rsqrtf(sum / static_cast<float>(s.head_dim) + s.eps);
        if (active && !copied && at.column == 0) inv_rms[token[t] * turned + at.head] = scale;
      }
      if (!active) continue;
      if (copied) {
        raw.store(out, at, half);
        continue;
      }
      if constexpr (NORM != QkNorm::none) {
        Pair<T, N> w;
        w.unpack_from(weight);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          x.first[i] *= scale * w.first[i];
          x.second[i] *= scale * w.second[i];
        }
      }
      x.template turn<SIGN>(cos_sin + static_cast<int64_t>(position[t]) * s.head_dim, at, half);
      x.store(out, at, half);
    }
  }
}

// Backward where heads are normalised. Blocks walk over tokens and sum the weights' gradients of their tokens
// in registers, a pair for each of a thread's C chunks; or, for norm `head` with more chunks than that (C ==
// 0), one pair for all queries and one for all keys, as a thread's column within the head never changes.
// partial: (rows, q_width + k_width), a row for each block (`head`) or for each token that a block works on
// at a time (`full`).
template <class T, int N, int C, QkNorm NORM>
__global__ void __launch_bounds__(kRopeThreads, 2)
    rope_backward_kernel(const T* __restrict__ qkv_in,    // (T, (H + 2 Hk) * head_dim)
                         const T* grad_out,               // same shape
                         T* grad_in,                      // same, out; may be grad_out
                         const T* __restrict__ q_weight,  // as above
                         const T* __restrict__ k_weight,
                         const float* __restrict__ inv_rms,      // (T, groups)
                         float* __restrict__ partial,            // out
                         const int32_t* __restrict__ positions,  // (T)
                         const float* __restrict__ cos_sin,      // (P, head_dim)
                         Shape s) {
  static_assert(NORM != QkNorm::none);
  __shared__ float shared[2 * 32 * 8];
  constexpr int kHeld = C == 0 ? 2 : C;
  Pair<T, N> grad_weight[kHeld];
#pragma unroll
  for (int c = 0; c < kHeld; ++c) grad_weight[c].clear();
  const int half = s.head_dim / 2, turned = s.heads + s.kv_heads, chunks = turned * s.lanes;
  const int rounds = (chunks + blockDim.x - 1) / blockDim.x;
  const int64_t groups = (s.num_tokens + blockDim.y - 1) / blockDim.y;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t token = group * blockDim.y + threadIdx.y;
    const bool present = token < s.num_tokens;
    const int64_t row = token * (static_cast<int64_t>(turned + s.kv_heads) * s.head_dim);
    const float* angles = present ? cos_sin + static_cast<int64_t>(positions[token]) * s.head_dim : nullptr;
    // The gradient after the weights, the input and the weights of a thread's chunk r.
    const auto load = [&](const Place& at, Pair<T, N>& g, Pair<T, N>& x, Pair<T, N>& w) {
      g.load(grad_out + row + at.head * s.head_dim, at, half);
      g.template turn<-1>(angles, at, half);
      const bool query = at.head < s.heads;
      const T* weight = query ? q_weight : k_weight;
      if (NORM == QkNorm::full) weight += (query ? at.head : at.head - s.heads) * s.head_dim;
      x.load(qkv_in + row + at.head * s.head_dim, at, half);
      w.load(weight, at, half);
    };
    float dots[2] = {0.0f, 0.0f}, inv[2] = {0.0f, 0.0f};
    if constexpr (NORM == QkNorm::full) {
      if (present) {
        inv[0] = inv_rms[token * 2];
        inv[1] = inv_rms[token * 2 + 1];
      }
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const Place at = place_of<N>(s, c * blockDim.x + threadIdx.x);
        if (!present || !at.active) continue;
        const int part = at.head < s.heads ? 0 : 1;
        Pair<T, N> g, x, w;
        load(at, g, x, w);
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float gx1 = g.first[i] * (x.first[i] * inv[part]),
                      gx2 = g.second[i] * (x.second[i] * inv[part]);
          grad_weight[c].first[i] += gx1;
          grad_weight[c].second[i] += gx2;
          dot += gx1 * w.first[i] + gx2 * w.second[i];
        }
        dots[part] += dot;
      }
      sum_row(dots, shared);
    }
#pragma unroll
    for (int r = 0; r < (C > 0 ? C : rounds); ++r) {
      const Place at = place_of<N>(s, r * blockDim.x + threadIdx.x);
      const bool active = present && at.active;
      const bool query = at.head < s.heads;
      Pair<T, N> g, x, w;
      g.clear();
      x.clear();
      w.clear();
      if (active) load(at, g, x, w);
      float scale, pull;
      if constexpr (NORM == QkNorm::head) {
        scale = active ? inv_rms[token * turned + at.head] : 0.0f;
        float dot = 0.0f;
#pragma unroll
        for (int i = 0; i < N; ++i) {
          const float gx1 = g.first[i] * (x.first[i] * scale), gx2 = g.second[i] * (x.second[i] * scale);
          if constexpr (C > 0) {
            grad_weight[r].first[i] += gx1;
            grad_weight[r].second[i] += gx2;
          } else {
            grad_weight[0].first[i] += query ? gx1 : 0.0f;
            grad_weight[0].second[i] += query ? gx2 : 0.0f;
            grad_weight[1].first[i] += query ? 0.0f : gx1;
            grad_weight[1].second[i] += query ? 0.0f : gx2;
          }
          dot += gx1 * w.first[i] + gx2 * w.second[i];
        }
        pull = sum_lanes(dot, s.lanes) / static_cast<float>(s.head_dim);
      } else {
        scale = query ? inv[0] : inv[1];
        pull = query ? dots[0] / static_cast<float>(s.heads * s.head_dim)
                     : dots[1] / static_cast<float>(s.kv_heads * s.head_dim);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        g.first[i] = scale * (g.first[i] * w.first[i] - x.first[i] * scale * pull);
        g.second[i] = scale * (g.second[i] * w.second[i] - x.second[i] * scale * pull);
      }
      if (active) g.store(grad_in + row + at.head * s.head_dim, at, half);
    }
    if (present && grad_in != grad_out) {
      const int64_t values = row + turned * s.head_dim;
      for (int i = threadIdx.x * N; i < s.kv_heads * s.head_dim; i += blockDim.x * N)
        store_pack(grad_in + values + i, load_pack<T, N>(grad_out + values + i));
    }
  }
  if constexpr (NORM == QkNorm::head) {
    // Lanes of the same column in a warp add up by shuffles, the warps of the block one after the other.
    __shared__ __align__(16) float block_sum[2 * 2 * 32 * N];
    float* mine = partial + static_cast<int64_t>(blockIdx.x) * (2 * s.head_dim);
    const int thread = threadIdx.y * blockDim.x + threadIdx.x;
    const int warps = blockDim.x * blockDim.y / 32, column = (thread & (s.lanes - 1)) * N;
    Pair<T, N> sums[2];  // of queries, of keys
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      sums[part].clear();
#pragma unroll
      for (int c = 0; c < kHeld; ++c) {
        const int head = (c * blockDim.x + threadIdx.x) / s.lanes;
        const bool mine_too = C == 0 ? c == part : (head < s.heads) == (part == 0);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sums[part].first[i] += mine_too ? grad_weight[c].first[i] : 0.0f;
          sums[part].second[i] += mine_too ? grad_weight[c].second[i] : 0.0f;
        }
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        for (int step = 16; step >= s.lanes; step /= 2) {
          sums[part].first[i] += __shfl_xor_sync(0xffffffffu, sums[part].first[i], step);
          sums[part].second[i] += __shfl_xor_sync(0xffffffffu, sums[part].second[i], step);
        }
      }
    }
    for (int warp = 0; warp < warps; ++warp) {
      __syncthreads();
      if (thread / 32 != warp || thread % 32 >= s.lanes || column >= half) continue;
      float* to = warp + 1 < warps ? block_sum : mine;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int at = part * s.head_dim + column;
        if (warp > 0) {
#pragma unroll
          for (int i = 0; i < N; ++i) {
            sums[part].first[i] += block_sum[at + i];
            sums[part].second[i] += block_sum[at + half + i];
          }
        }
        store_floats<N>(to + at, sums[part].first);
        store_floats<N>(to + at + half, sums[part].second);
      }
    }
  } else if constexpr (NORM == QkNorm::full) {
    const int64_t team = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    float* mine = partial + team * (static_cast<int64_t>(turned) * s.head_dim);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const Place at = place_of<N>(s, c * blockDim.x + threadIdx.x);
      if (!at.active) continue;
      store_floats<N>(mine + at.head * s.head_dim + at.column, grad_weight[c].first);
      store_floats<N>(mine + at.head * s.head_dim + at.column + half, grad_weight[c].second);
    }
  }
}

RopeGeometry geometry_of(const RopeShape& s, int64_t heads, int max_elements) {
  RopeGeometry geometry{};
  MOEBIUS_CHECK_EQ(s.num_rotated(), s.head_dim, "heads rotated in part are not served on the GPU");
  MOEBIUS_CHECK(rope_geometry(heads, s.head_dim, max_elements, &geometry),
                "rotary positions on the GPU take head sizes that are multiples of 16 up to 256, or even "
                "ones up to 64; "
                "head_dim is ",
                s.head_dim);
  return geometry;
}

Shape shape_of(const RopeShape& s, const RopeGeometry& geometry, bool copies_values) {
  return {s.num_tokens,
          static_cast<int>(s.num_heads),
          static_cast<int>(s.num_kv_heads),
          static_cast<int>(s.head_dim),
          geometry.lanes_per_head,
          s.eps,
          copies_values};
}

// Elements of a chunk: 16 bytes' worth, 1 when pointers are not aligned or head_dim / 2 is no multiple.
template <class T>
int elements_of(const RopeShape& s, std::initializer_list<const void*> pointers) {
  return vector_elements(s.head_dim / 2, sizeof(T), pointers);
}

template <class Body>
void with_norm(QkNorm norm, const Body& body) {
  switch (norm) {
    case QkNorm::none:
      return body.template operator()<QkNorm::none>();
    case QkNorm::head:
      return body.template operator()<QkNorm::head>();
    case QkNorm::full:
      return body.template operator()<QkNorm::full>();
  }
}

// One pass over the rows; SIGN -1 for the backward without normalisation.
template <int SIGN>
void turn_rows(const RopeForwardArgs& a, Stream stream) {
  const RopeShape& s = a.shape;
  if (s.num_tokens == 0) return;
  const bool copies_values = a.qkv_in != a.qkv_out;
  with_dtype(s.dtype, [&]<class T>(T) {
    const int elements = elements_of<T>(s, {a.qkv_in, a.qkv_out, a.q_weight, a.k_weight, a.cos_sin});
    with_vector<T>(elements, [&]<int N>(Constant<N>) {
      const RopeGeometry geometry = geometry_of(s, s.num_heads + (copies_values ? 2 : 1) * s.num_kv_heads, N);
      with_chunks(geometry.chunks_per_thread, [&]<int C>(Constant<C>) {
        const dim3 block(geometry.threads, geometry.tokens_per_block);
        const int blocks = grid_size(ceil_div(s.num_tokens, geometry.tokens_per_block * tokens_in_flight(C)));
        const auto launch = [&]<QkNorm NORM>() {
          rope_forward_kernel<T, N, C, NORM, SIGN><<<blocks, block, 0, cuda_stream(stream)>>>(
              static_cast<const T*>(a.qkv_in), static_cast<T*>(a.qkv_out), static_cast<const T*>(a.q_weight),
              static_cast<const T*>(a.k_weight), a.inv_rms, a.positions, a.cos_sin,
              shape_of(s, geometry, copies_values));
          MOEBIUS_CUDA_CHECK_LAUNCH("rope_forward");
        };
        if constexpr (SIGN < 0) {
          launch.template operator()<QkNorm::none>();
        } else {
          with_norm(s.norm, launch);
        }
      });
    });
  });
}

}  // namespace

void rope_forward(const RopeForwardArgs& a, Stream stream) {
  turn_rows<1>(a, stream);
}

void rope_backward(const RopeBackwardArgs& a, Stream stream) {
  const RopeShape& s = a.shape;
  if (s.norm == QkNorm::none) {
    turn_rows<-1>({s, a.grad_out, a.grad_in, nullptr, nullptr, nullptr, a.positions, a.cos_sin}, stream);
    return;
  }
  const bool full = s.norm == QkNorm::full;
  const int64_t q_width = full ? s.num_heads * s.head_dim : s.head_dim;
  const int64_t k_width = full ? s.num_kv_heads * s.head_dim : s.head_dim;
  const int multiprocessors = num_multiprocessors();
  with_dtype(s.dtype, [&]<class T>(T) {
    const int elements =
        elements_of<T>(s, {a.qkv_in, a.grad_out, a.grad_in, a.q_weight, a.k_weight, a.cos_sin});
    with_vector<T>(elements, [&]<int N>(Constant<N>) {
      const RopeGeometry geometry = geometry_of(s, s.num_heads + s.num_kv_heads, N);
      MOEBIUS_CHECK(!full || geometry.chunks_per_thread > 0, "normalisation over ", s.num_heads, " + ",
                    s.num_kv_heads, " heads of ", s.head_dim, " is too wide");
      with_norm(s.norm, [&]<QkNorm NORM>() {
        with_chunks(geometry.chunks_per_thread, [&]<int C>(Constant<C>) {
          if constexpr (NORM == QkNorm::head || (NORM == QkNorm::full && C > 0)) {
            const dim3 block(geometry.threads, geometry.tokens_per_block);
            const int threads = geometry.threads * geometry.tokens_per_block;
            const int64_t groups = std::max<int64_t>(1, ceil_div(s.num_tokens, geometry.tokens_per_block));
            const int blocks = persistent_blocks(groups, multiprocessors, std::max(2, 1024 / threads));
            const int64_t partials =
                NORM == QkNorm::head ? blocks : int64_t{blocks} * geometry.tokens_per_block;
            float* const partial =
                scratch_of<float>(static_cast<size_t>(partials * (q_width + k_width)), cuda_stream(stream));
            rope_backward_kernel<T, N, C, NORM><<<blocks, block, 0, cuda_stream(stream)>>>(
                static_cast<const T*>(a.qkv_in), static_cast<const T*>(a.grad_out),
                static_cast<T*>(a.grad_in), static_cast<const T*>(a.q_weight),
                static_cast<const T*>(a.k_weight), a.inv_rms, partial, a.positions, a.cos_sin,
                shape_of(s, geometry, false));
            MOEBIUS_CUDA_CHECK_LAUNCH("rope_backward");
            sum_columns(partial, partials, q_width, q_width + k_width, a.grad_q_weight, cuda_stream(stream));
            sum_columns(partial + q_width, partials, k_width, q_width + k_width, a.grad_k_weight,
                        cuda_stream(stream));
          }
        });
      });
    });
  });
}

}  // namespace moebius::kernels::cuda
