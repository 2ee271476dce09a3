// Times every variant of the grouped products at the sizes of MoE layers, and the passes around them: TFLOP/s
// of each, the best mix of a layer. Not a test: run it by hand on a machine with a Hopper GPU. Groups as
// random routing makes them.
//   grouped_bench [--seconds S] [--only TITLES] [--variant NAME] [shape ...]
// S: how long each runs before it is timed, and is timed for (0.2). TITLES: only these products, between
// semicolons. NAME: only that variant.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <string>

#include "kernels/cuda/bench_device.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/kernels.h"

namespace moebius::kernels::cuda {
namespace {

struct Shape {
  const char* name;
  int64_t tokens, width, expert_width, experts, top_k;
};
constexpr Shape kShapes[] = {
    {"qwen3-30b-8k", 8192, 2048, 768, 128, 8}, {"qwen3-30b", 32768, 2048, 768, 128, 8},
    {"olmoe", 16384, 2048, 1024, 64, 8},       {"dsv2-lite", 16384, 2048, 1408, 64, 6},
    {"fine-1536", 24576, 1536, 256, 128, 8},   {"mixtral", 8192, 4096, 14336, 8, 2},
    {"wide-4096", 32768, 4096, 1024, 128, 8},  {"qwen3-30b-1k", 1024, 2048, 768, 128, 8},
};

// Slots sorted by expert, K distinct experts per token.
struct Routes {
  std::vector<int32_t> order, inverse, offsets;
};
Routes random_routes(const Shape& s) {
  std::mt19937 random(7);
  std::vector<int32_t> experts, choice(static_cast<size_t>(s.experts));
  std::iota(choice.begin(), choice.end(), 0);
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t k = 0; k < s.top_k; ++k) {
      std::swap(choice[static_cast<size_t>(k)],
                choice[static_cast<size_t>(k) + random() % static_cast<size_t>(s.experts - k)]);
      experts.push_back(choice[static_cast<size_t>(k)]);
    }
  }
  Routes routes;
  routes.inverse.resize(experts.size());
  routes.offsets.push_back(0);
  for (int32_t e = 0; e < s.experts; ++e) {
    for (size_t slot = 0; slot < experts.size(); ++slot) {
      if (experts[slot] != e) continue;
      routes.inverse[slot] = static_cast<int32_t>(routes.order.size());
      routes.order.push_back(static_cast<int32_t>(slot));
    }
    routes.offsets.push_back(static_cast<int32_t>(routes.order.size()));
  }
  return routes;
}

struct Options {
  double seconds = 0.2;
  const char *only = nullptr, *variant = nullptr;
};
Options options;

// Whether the title is one of --only's, which stand between semicolons.
bool is_wanted(const std::string& title) {
  return options.only == nullptr ||
         (";" + std::string(options.only) + ";").find(";" + title + ";") != std::string::npos;
}

double best_of(const char* title, const GroupedGemmArgs& args, double flops) {
  double best = std::numeric_limits<double>::infinity();
  if (!is_wanted(title)) return best;
  for (const GroupedVariant* variant : grouped_variants(args)) {
    if (options.variant != nullptr && std::strcmp(name_of(*variant), options.variant) != 0) continue;
    std::printf("  %-26s %-26s", title, name_of(*variant));
    std::fflush(stdout);
    const double us =
        sustained_us([&](Stream stream) { run_variant(*variant, args, stream); }, options.seconds);
    std::printf(" %9.1f us %7.1f TFLOP/s\n", us, flops / us / 1e6);
    std::fflush(stdout);
    best = std::min(best, us);
  }
  return best;
}

void bench_shape(const Shape& s) {
  const int64_t T = s.tokens, D = s.width, F = s.expert_width, E = s.experts, R = T * s.top_k;
  std::printf("-- %s: T %ld, D %ld, F %ld, E %ld, K %ld\n", s.name, T, D, F, E, s.top_k);
  std::vector<void*> held;
  const auto values = [&](int64_t count) { return held.emplace_back(random_values(DType::bf16, count)); };
  const Routes routes = random_routes(s);
  int32_t *order = upload(routes.order), *inverse = upload(routes.inverse), *offsets = upload(routes.offsets);
  void *x = values(T * D), *rows = values(R * D), *gate_up = values(R * 2 * F), *act = values(R * F),
       *y = values(R * D);
  void *w1 = values(E * 2 * F * D), *w2 = values(E * F * D), *grad_w = values(E * 2 * F * D),
       *scaled = values(R * F);
  float *weights = random_floats(R), *grad_weights = random_floats(R);
  for (void* p : {static_cast<void*>(order), static_cast<void*>(inverse), static_cast<void*>(offsets),
                  static_cast<void*>(weights), static_cast<void*>(grad_weights)})
    held.push_back(p);
  const double up = 4.0 * static_cast<double>(R * D) * static_cast<double>(F), down = up / 2;
  const double gather = median_us([&](Stream q) {
    gather_rows({x, order, rows, R, D, s.top_k, DType::bf16}, q);
  });
  const double combine = median_us([&](Stream q) {
    combine_rows({rows, inverse, weights, nullptr, y, T, D, s.top_k, DType::bf16}, q);
  });
  std::printf("  gather %.1f us, combine %.1f us\n", gather, combine);
  const auto args = [&](GroupedGemmKind kind, const void* a, const void* b, void* out, int64_t n, int64_t k) {
    GroupedGemmArgs g{};
    g.kind = kind;
    g.a = a;
    g.b = b;
    g.out = out;
    g.offsets = offsets;
    g.num_groups = E;
    g.num_rows = R;
    g.n = n;
    g.k = k;
    g.index_divisor = 1;
    g.dtype = g.out_dtype = DType::bf16;
    return g;
  };
  const auto gathered = [&](GroupedGemmArgs g, bool b) {
    (b ? g.b_index : g.a_index) = order;
    (b ? g.b : g.a) = x;
    g.index_divisor = s.top_k;
    return g;
  };
  GroupedGemmArgs plain_up = args(GroupedGemmKind::forward, rows, w1, gate_up, 2 * F, D), fused_up = plain_up;
  best_of("up", plain_up, up);
  fused_up.act = act;
  const double up_fused = best_of("up + swiglu", fused_up, up);
  const double up_gather = best_of("gather + up + swiglu", gathered(fused_up, false), up);
  best_of("gather + up", gathered(plain_up, false), up);
  const double down_us = best_of("down", args(GroupedGemmKind::forward, act, w2, y, D, F), down);
  GroupedGemmArgs grad_down = args(GroupedGemmKind::input_grad, rows, w2, act, D, F);
  const double gd = best_of("grad down", grad_down, down);
  const double gdg = best_of("gather + grad down", gathered(grad_down, false), down);
  const double swiglu = median_us([&](Stream q) {
    swiglu_backward({gate_up, act, weights, gate_up, scaled, grad_weights, offsets + E, R, F, DType::bf16},
                    q);
  });
  std::printf("  swiglu backward %.1f us\n", swiglu);
  const double grad_up = best_of("grad up", args(GroupedGemmKind::input_grad, gate_up, w1, y, 2 * F, D), up);
  const GroupedGemmArgs weight_down = args(GroupedGemmKind::weight_grad, rows, act, grad_w, D, F);
  const double wd = best_of("weight down", weight_down, down);
  const double wdg = best_of("gather + weight down", gathered(weight_down, false), down);
  const GroupedGemmArgs weight_up = args(GroupedGemmKind::weight_grad, gate_up, rows, grad_w, 2 * F, D);
  const double wu = best_of("weight up", weight_up, up);
  const double wug = best_of("gather + weight up", gathered(weight_up, true), up);
  // Forward gathers x; backward gathers the gradient once for two products, and x again.
  const double forward = std::min(gather + up_fused, up_gather) + down_us + combine;
  const double backward =
      std::min(gather + gd + wd, gdg + wdg) + swiglu + std::min(gather + wu, wug) + grad_up + combine;
  std::printf("  layer, best mix: forward %.2f ms %.0f TFLOP/s, forward + backward %.2f ms %.0f TFLOP/s\n",
              forward / 1e3, (up + down) / forward / 1e6, (forward + backward) / 1e3,
              3 * (up + down) / (forward + backward) / 1e6);
  for (void* p : held) MOEBIUS_CUDA_CHECK(cudaFree(p));
}

}  // namespace
}  // namespace moebius::kernels::cuda

int main(int count, char** names) {
  using namespace moebius::kernels::cuda;
  int first = 1;
  for (; first + 1 < count && std::strncmp(names[first], "--", 2) == 0; first += 2) {
    if (std::strcmp(names[first], "--seconds") == 0) {
      options.seconds = std::atof(names[first + 1]);
    } else if (std::strcmp(names[first], "--variant") == 0) {
      options.variant = names[first + 1];
    } else {
      options.only = names[first + 1];
    }
  }
  for (const Shape& shape : kShapes) {
    bool wanted = first == count;
    for (int i = first; i < count; ++i) wanted = wanted || std::strcmp(names[i], shape.name) == 0;
    if (wanted) bench_shape(shape);
  }
  return 0;
}
