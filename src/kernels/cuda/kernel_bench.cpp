// Times every CUDA kernel at the sizes of a training step and prints bytes, microseconds and TB/s beside
// what 4.2 TB/s would take. Not a test: run it by hand on a machine with a GPU. Medians of 20 runs on random
// data, timed by events.
#include <cstdio>

#include "kernels/cuda/bench_device.h"
#include "kernels/cuda/kernels.h"

namespace moebius::kernels::cuda {
namespace {

constexpr double kCeiling = 4.2e12;

void time_kernel(const char* name, double bytes, const std::function<void(Stream)>& kernel) {
  const double us = median_us(kernel);
  std::printf("%-34s %9.1f MB %9.1f us %6.2f TB/s  floor %8.1f us\n", name, bytes / 1e6, us, bytes / us / 1e6,
              bytes / kCeiling * 1e6);
  std::fflush(stdout);
}

struct Model {
  const char* name;
  int64_t tokens, width, expert_width, experts, top_k, heads, kv_heads;
  QkNorm norm;
};

void bench_model(const Model& m) {
  std::printf("-- %s: T %ld, D %ld, F %ld, E %ld, K %ld\n", m.name, m.tokens, m.width, m.expert_width,
              m.experts, m.top_k);
  const DType dtype = DType::bf16;
  const int64_t T = m.tokens, D = m.width, F = m.expert_width, R = T * m.top_k;
  std::vector<void*> held;
  const auto values = [&](int64_t count) { return held.emplace_back(random_values(dtype, count)); };
  const auto floats = [&](int64_t count) {
    float* p = random_floats(count);
    held.push_back(p);
    return p;
  };
  const double td = 2.0 * static_cast<double>(T * D), rd = 2.0 * static_cast<double>(R * D),
               rf = 2.0 * static_cast<double>(R * F);

  void *x = values(T * D), *r = values(T * D), *s = values(T * D), *y = values(T * D), *w = values(D);
  float *inv = floats(T), *gw = floats(D);
  time_kernel("rms_norm_forward", 2 * td, [&](Stream q) {
    rms_norm_forward({x, nullptr, nullptr, w, y, inv, T, D, 1e-5f, dtype}, q);
  });
  time_kernel("rms_norm_forward + residual", 4 * td, [&](Stream q) {
    rms_norm_forward({x, r, s, w, y, inv, T, D, 1e-5f, dtype}, q);
  });
  time_kernel("rms_norm_backward", 3 * td, [&](Stream q) {
    rms_norm_backward({s, w, inv, r, nullptr, y, gw, T, D, dtype}, q);
  });
  time_kernel("rms_norm_backward + residual", 4 * td, [&](Stream q) {
    rms_norm_backward({s, w, inv, r, x, y, gw, T, D, dtype}, q);
  });

  const int64_t hd = 128, C = (m.heads + 2 * m.kv_heads) * hd;
  void *qkv = values(T * C), *qkv_out = values(T * C), *qw = values(m.heads * hd), *kw = values(m.heads * hd);
  std::vector<int32_t> position(static_cast<size_t>(T));
  for (size_t t = 0; t < position.size(); ++t) position[t] = static_cast<int32_t>(t % 4096);
  int32_t* positions = upload(position);
  held.push_back(positions);
  float *cos_sin = floats(4096 * hd), *rope_inv = floats(T * (m.heads + m.kv_heads)),
        *gq = floats(m.heads * hd), *gk = floats(m.heads * hd);
  const RopeShape shape{T, m.heads, m.kv_heads, hd, m.norm, 1e-5f, dtype};
  const bool normed = m.norm != QkNorm::none;
  const double tc = 2.0 * static_cast<double>(T * C);
  time_kernel("rope_forward", 2 * tc, [&](Stream q) {
    rope_forward({shape, qkv, qkv_out, qw, kw, rope_inv, positions, cos_sin}, q);
  });
  time_kernel(
      "rope_backward in place",
      (normed ? 3 : 2) * tc - (normed ? 3 : 2) * 2.0 * static_cast<double>(T * m.kv_heads * hd),
      [&](Stream q) {
        rope_backward({shape, qkv, qkv_out, qkv_out, qw, kw, rope_inv, gq, gk, positions, cos_sin}, q);
      });

  float *logits = floats(T * m.experts), *probs = floats(T * m.experts), *lse = floats(T),
        *weights = floats(R), *grad_w = floats(R);
  float *grad_logits = floats(T * m.experts), *grad_probs = floats(m.experts), *one = floats(1),
        *sums = floats(2 * m.experts + 2);
  int32_t* experts = upload(std::vector<int32_t>(static_cast<size_t>(R)));
  int32_t* order = upload(std::vector<int32_t>(static_cast<size_t>(R)));
  int32_t* inverse = upload(std::vector<int32_t>(static_cast<size_t>(R)));
  int32_t* offsets = upload(std::vector<int32_t>(static_cast<size_t>(m.experts + 1)));
  for (int32_t* p : {experts, order, inverse, offsets}) held.push_back(p);
  // Logits of the pattern repeat every 2^22 elements; routing is still spread over all experts.
  const RouteOptions options{T, m.experts, m.top_k, Score::softmax, false, true, 1.0f};
  const double te = 4.0 * static_cast<double>(T * m.experts), tk = 4.0 * static_cast<double>(R);
  time_kernel("route_forward", 2 * te + 2 * tk, [&](Stream q) {
    route_forward({options, logits, nullptr, probs, experts, weights, lse}, q);
  });
  time_kernel("route_stats", te + tk, [&](Stream q) {
    route_stats({options, probs, experts, lse, nullptr, 1, sums, sums + m.experts, sums + 2 * m.experts,
                 sums + 2 * m.experts + 1},
                q);
  });
  time_kernel("route_backward", 2 * te + 2 * tk, [&](Stream q) {
    route_backward(
        {options, logits, probs, experts, weights, lse, grad_w, grad_probs, nullptr, one, grad_logits}, q);
  });
  time_kernel("sort_by_expert", 4 * tk, [&](Stream q) {
    sort_by_expert({experts, R, m.experts, -1, order, inverse, offsets}, q);
  });
  void* rows = values(R * D);
  time_kernel("gather_rows", 2 * rd, [&](Stream q) {
    gather_rows({x, order, rows, R, D, m.top_k, dtype}, q);
  });
  time_kernel("combine_rows", rd + td, [&](Stream q) {
    combine_rows({rows, inverse, weights, nullptr, y, T, D, m.top_k, dtype}, q);
  });
  void *gate_up = values(R * 2 * F), *act = values(R * F);
  float* row_grad = floats(R);
  const int32_t* valid = offsets + m.experts;
  time_kernel("swiglu_forward", 3 * rf, [&](Stream q) {
    swiglu_forward({gate_up, act, valid, R, F, dtype}, q);
  });
  time_kernel("swiglu_backward in place", 6 * rf, [&](Stream q) {
    swiglu_backward({gate_up, act, weights, gate_up, act, row_grad, valid, R, F, dtype}, q);
  });
  for (void* p : held) MOEBIUS_CUDA_CHECK(cudaFree(p));
}

void bench_rest() {
  std::printf("-- loss and optimizer\n");
  for (const int64_t vocab : {32000, 50304, 151936}) {
    const int64_t rows = 4096;
    void* logits = random_values(DType::bf16, rows * vocab);
    float *loss = random_floats(rows), *scale = random_floats(1);
    std::vector<int64_t> target(static_cast<size_t>(rows));
    for (size_t i = 0; i < target.size(); ++i) target[i] = static_cast<int64_t>(i * 7919) % vocab;
    int64_t* targets = upload(target);
    const double bytes = 2.0 * static_cast<double>(rows * vocab);
    const std::string name = "cross_entropy, V " + std::to_string(vocab);
    time_kernel(name.c_str(), 2 * bytes, [&](Stream q) {
      cross_entropy({logits, targets, loss, logits, scale, rows, vocab, DType::bf16}, q);
    });
    for (void* p : {logits, static_cast<void*>(loss), static_cast<void*>(scale), static_cast<void*>(targets)})
      MOEBIUS_CUDA_CHECK(cudaFree(p));
  }
  // A list as in a model: some large tensors, many small ones.
  for (const bool full : {false, true}) {
    std::vector<AdamWTensor> list;
    std::vector<GradTensor> grads;
    std::vector<void*> held;
    double count = 0.0;
    const DType state = full ? DType::f32 : DType::bf16;
    for (int i = 0; i < 60; ++i) {
      const int64_t size = i < 6 ? int64_t{100} << 20 : (i < 30 ? int64_t{4} << 20 : 2048);
      AdamWTensor t{random_values(DType::bf16, size),
                    full ? random_floats(size) : nullptr,
                    random_values(DType::bf16, size),
                    random_values(state, size),
                    random_values(state, size),
                    size,
                    1e-6f,
                    0.1f,
                    DType::bf16,
                    DType::bf16,
                    state};
      for (void* p : {t.param, static_cast<void*>(t.master), const_cast<void*>(t.grad), t.m, t.v})
        held.push_back(p);
      list.push_back(t);
      grads.push_back({t.grad, size, DType::bf16});
      count += static_cast<double>(size);
    }
    const float one = 1.0f;
    float *scale = random_floats(1), *out = random_floats(1);
    MOEBIUS_CUDA_CHECK(cudaMemcpy(scale, &one, sizeof(one), cudaMemcpyHostToDevice));
    time_kernel(full ? "adamw bf16, master + fp32 states" : "adamw all bf16", count * (full ? 28.0 : 14.0),
                [&](Stream q) {
                  adamw({list, 0.9f, 0.95f, 1e-8f, 0.1f, 0.05f, scale}, q);
                });
    time_kernel("sum_squares bf16", count * 2.0, [&](Stream q) { sum_squares({grads, out}, q); });
    for (void* p : held) MOEBIUS_CUDA_CHECK(cudaFree(p));
  }
  const int64_t bytes = int64_t{2} << 30;
  void *from = random_values(DType::bf16, bytes / 2), *to = random_values(DType::bf16, bytes / 2);
  time_kernel("device copy (ceiling)", 2.0 * static_cast<double>(bytes), [&](Stream q) {
    MOEBIUS_CUDA_CHECK(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice,
                                       static_cast<cudaStream_t>(q)));
  });
}

}  // namespace
}  // namespace moebius::kernels::cuda

int main() {
  using namespace moebius::kernels::cuda;
  using moebius::kernels::QkNorm;
  bench_model({"Mixtral-8x7B", 16384, 4096, 14336, 8, 2, 32, 8, QkNorm::none});
  bench_model({"OLMoE-1B-7B", 16384, 2048, 1024, 64, 8, 16, 16, QkNorm::full});
  bench_model({"Qwen3-30B-A3B", 16384, 2048, 768, 128, 8, 32, 4, QkNorm::head});
  bench_rest();
  return 0;
}
