// Times every variant of the integer products beside the bf16 ones, and the passes around them, at the sizes
// of dense layers and MoE layers. Not a test: run it by hand on a machine with a Hopper GPU.
//   int8_bench [--seconds S] [--only TITLES] [--variant NAME] [dense|dense-ROWS] [shape ...]
// S: how long each runs before it is timed, and is timed for (0.02). TITLES: only these products, between
// semicolons, and no passes around them. NAME: only these variants, likewise. dense-ROWS: of so many rows
// alone, N = K = 4,096.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>

#include "kernels/cuda/bench_device.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/int8_gemm.h"
#include "kernels/cuda/kernels.h"

namespace moebius::kernels::cuda {
namespace {

struct Shape {
  const char* name;
  int64_t tokens, width, expert_width, experts, top_k;
};
constexpr Shape kShapes[] = {
    {"qwen3-30b-8k", 8192, 2048, 768, 128, 8}, {"qwen3-30b", 32768, 2048, 768, 128, 8},
    {"olmoe", 16384, 2048, 1024, 64, 8},       {"mixtral", 8192, 4096, 14336, 8, 2},
    {"fine-1536", 24576, 1536, 256, 128, 8},   {"qwen3-30b-64", 64, 2048, 768, 128, 8},
};

struct Options {
  double seconds = 0.02;
  const char *only = nullptr, *variant = nullptr;
};
Options options;

// Whether a name is one of those that stand between semicolons; all are without any.
bool is_wanted(const char* wanted, const std::string& name) {
  return wanted == nullptr || (";" + std::string(wanted) + ";").find(";" + name + ";") != std::string::npos;
}

void* random_codes(int64_t bytes) {
  return random_values(DType::bf16, (bytes + 1) / 2);
}

// Each variant, and the one that is chosen by itself.
double best_of(const char* title, const Int8GemmArgs& args, double ops, double bf16_us) {
  double best = 1e30;
  if (!is_wanted(options.only, title)) return best;
  const auto report = [&](const char* name, double seconds, const std::function<void(Stream)>& product) {
    std::printf("  %-22s %-36s", title, name);  // before, so that one that hangs shows
    std::fflush(stdout);
    const double us = sustained_us(product, seconds);
    std::printf(" %9.1f us %7.1f TOPS  %.2f x bf16\n", us, ops / us / 1e6, bf16_us / us);
    std::fflush(stdout);
    return us;
  };
  for (const Int8Variant* variant : int8_variants(args)) {
    if (!is_wanted(options.variant, name_of(*variant))) continue;
    best = std::min(best, report(name_of(*variant), options.seconds,
                                 [&](Stream s) { run_int8_variant(*variant, args, s); }));
  }
  if (is_wanted(options.variant, "chosen"))
    report("chosen", options.seconds, [&](Stream s) { int8_gemm(args, s); });
  return best;
}

double bf16_best(const char* title, const GroupedGemmArgs& args, double flops) {
  double best = 1e30;
  if (!is_wanted(options.only, title) || options.variant != nullptr) return best;
  for (const GroupedVariant* variant : grouped_variants(args)) {
    const double us = sustained_us([&](Stream s) { run_variant(*variant, args, s); }, options.seconds);
    std::printf("  %-22s bf16 %-31s %9.1f us %7.1f TFLOP/s\n", title, name_of(*variant), us,
                flops / us / 1e6);
    std::fflush(stdout);
    best = std::min(best, us);
  }
  return best;
}

class Held {
 public:
  ~Held() {
    for (void* p : all_) cudaFree(p);
  }
  void* codes(int64_t bytes) { return keep(random_codes(bytes)); }
  void* values(int64_t count) { return keep(random_values(DType::bf16, count)); }
  float* floats(int64_t count) { return static_cast<float*>(keep(random_floats(count))); }
  int32_t* integers(const std::vector<int32_t>& values) {
    return static_cast<int32_t*>(keep(upload(values)));
  }

 private:
  void* keep(void* p) {
    all_.push_back(p);
    return p;
  }
  std::vector<void*> all_;
};

Int8RowsArgs rows_args(const void* x, void* codes, float* scales, int64_t rows, int64_t width) {
  Int8RowsArgs args{};
  args.x = x;
  args.index_divisor = 1;
  args.codes = static_cast<uint8_t*>(codes);
  args.scales = scales;
  args.num_rows = rows;
  args.width = args.x_stride = args.codes_stride = width;
  args.dtype = DType::bf16;
  args.product_follows = true;
  return args;
}

void bench_dense(int64_t m, int64_t n, int64_t k) {
  std::printf("-- dense M %ld, N %ld, K %ld\n", m, n, k);
  Held held;
  void *x = held.values(m * k), *w = held.values(n * k), *out = held.values(m * n);
  void *x8 = held.codes(m * k), *w8 = held.codes(n * k);
  float *x_scales = held.floats(m), *w_scales = held.floats(n);
  int32_t* offsets = held.integers({0, static_cast<int32_t>(m)});
  const double ops = 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
  GroupedGemmArgs bf{};
  bf.kind = GroupedGemmKind::forward;
  bf.a = x;
  bf.b = w;
  bf.out = out;
  bf.offsets = offsets;
  bf.num_groups = 1;
  bf.num_rows = m;
  bf.n = n;
  bf.k = k;
  bf.index_divisor = 1;
  bf.dtype = bf.out_dtype = DType::bf16;
  const double bf_us = bf16_best("product", bf, ops);
  const Int8RowsArgs quantise = rows_args(x, x8, x_scales, m, k);
  const double rows_us = sustained_us([&](Stream s) { int8_rows(quantise, s); }, options.seconds);
  std::printf("  quantising %.1f us, %.2f TB/s\n", rows_us, 3.0 * static_cast<double>(m * k) / rows_us / 1e6);
  Int8GemmArgs args{};
  args.a = static_cast<const uint8_t*>(x8);
  args.a_scales = x_scales;
  args.index_divisor = 1;
  args.b = static_cast<const int8_t*>(w8);
  args.b_scales = w_scales;
  args.out = out;
  args.num_groups = 1;
  args.num_rows = args.num_a_rows = m;
  args.n = n;
  args.k = args.a_stride = k;
  args.out_dtype = DType::bf16;
  best_of("product", args, ops, bf_us);
  const double both = sustained_us(
      [&](Stream s) {
        int8_rows(quantise, s);
        int8_gemm(args, s);
      },
      options.seconds);
  std::printf("  with quantising: %.1f us, %.2f x our bf16\n", both, bf_us / both);
  std::fflush(stdout);
}

// Slots sorted by expert, K distinct experts per token.
struct Routes {
  std::vector<int32_t> order, inverse, offsets;
};
Routes random_routes(const Shape& s) {
  std::mt19937 random(7);
  std::vector<int32_t> experts, choice(static_cast<size_t>(s.experts));
  std::iota(choice.begin(), choice.end(), 0);
  std::vector<int32_t> counts(static_cast<size_t>(s.experts));
  for (int64_t t = 0; t < s.tokens; ++t) {
    for (int64_t k = 0; k < s.top_k; ++k) {
      std::swap(choice[static_cast<size_t>(k)],
                choice[static_cast<size_t>(k) + random() % static_cast<size_t>(s.experts - k)]);
      experts.push_back(choice[static_cast<size_t>(k)]);
      ++counts[static_cast<size_t>(experts.back())];
    }
  }
  Routes routes;
  routes.offsets.push_back(0);
  for (const int32_t count : counts) routes.offsets.push_back(routes.offsets.back() + count);
  std::vector<int32_t> next(routes.offsets.begin(), routes.offsets.end() - 1);
  routes.order.resize(experts.size());
  for (size_t slot = 0; slot < experts.size(); ++slot) {
    const int32_t at = next[static_cast<size_t>(experts[slot])]++;
    routes.order[static_cast<size_t>(at)] = static_cast<int32_t>(slot);
    routes.inverse.push_back(at);
  }
  return routes;
}

void bench_shape(const Shape& s) {
  const int64_t T = s.tokens, D = s.width, F = s.expert_width, E = s.experts, R = T * s.top_k;
  std::printf("-- %s: T %ld, D %ld, F %ld, E %ld, K %ld\n", s.name, T, D, F, E, s.top_k);
  Held held;
  const Routes routes = random_routes(s);
  int32_t *order = held.integers(routes.order), *inverse = held.integers(routes.inverse),
          *offsets = held.integers(routes.offsets);
  void *x = held.values(T * D), *rows = held.values(R * D), *gate_up = held.values(R * 2 * F),
       *act = held.values(R * F), *y = held.values(T * D);
  void *w1 = held.values(E * 2 * F * D), *w2 = held.values(E * F * D);
  void *x8 = held.codes(T * D), *rows8 = held.codes(R * D), *wide8 = held.codes(R * 2 * F),
       *w18 = held.codes(E * 2 * F * D), *w28 = held.codes(E * F * D), *w18t = held.codes(E * 2 * F * D),
       *w28t = held.codes(E * F * D);
  float *row_scales = held.floats(R), *token_scales = held.floats(T), *s1 = held.floats(E * 2 * F),
        *s2 = held.floats(E * D), *weights = held.floats(R);
  const double up = 4.0 * static_cast<double>(R * D) * static_cast<double>(F), down = up / 2;
  const auto bf_args = [&](GroupedGemmKind kind, const void* a, const void* b, void* out, int64_t n,
                           int64_t k) {
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
  GroupedGemmArgs up_plain = bf_args(GroupedGemmKind::forward, rows, w1, gate_up, 2 * F, D),
                  up_act = up_plain;
  up_act.act = act;
  GroupedGemmArgs up_gathered = up_act;
  up_gathered.a = x;
  up_gathered.a_index = order;
  up_gathered.index_divisor = s.top_k;
  const GroupedGemmArgs down_bf = bf_args(GroupedGemmKind::forward, act, w2, rows, D, F);
  const double bf_up = bf16_best("up", up_plain, up), bf_act = bf16_best("up + swiglu", up_act, up),
               bf_down = bf16_best("down", down_bf, down);
  const double bf_grad =
                   bf16_best("grad down", bf_args(GroupedGemmKind::input_grad, rows, w2, act, D, F), down),
               bf_grad_up = bf16_best("grad up",
                                      bf_args(GroupedGemmKind::input_grad, gate_up, w1, rows, 2 * F, D), up);
  const auto args = [&](const void* a, const float* a_scales, const void* b, const float* b_scales, void* out,
                        int64_t n, int64_t k) {
    Int8GemmArgs g{};
    g.a = static_cast<const uint8_t*>(a);
    g.a_scales = a_scales;
    g.index_divisor = 1;
    g.b = static_cast<const int8_t*>(b);
    g.b_scales = b_scales;
    g.offsets = offsets;
    g.out = out;
    g.num_groups = E;
    g.num_rows = g.num_a_rows = R;
    g.n = n;
    g.k = g.a_stride = k;
    g.out_dtype = DType::bf16;
    return g;
  };
  const Int8GemmArgs plain = args(rows8, row_scales, w18, s1, gate_up, 2 * F, D);
  Int8GemmArgs activated = plain, kept, copied;
  activated.swiglu = true;
  activated.out = act;
  kept = copied = activated;
  kept.gate_up = gate_up;
  copied.a_scales = token_scales;
  copied.scale_index = order;
  copied.index_divisor = s.top_k;
  copied.num_a_rows = T;
  const Int8GemmArgs down8 = args(wide8, row_scales, w28, s2, rows, D, F);
  best_of("up", plain, up, bf_up);
  best_of("up + swiglu", activated, up, bf_act);
  best_of("up + swiglu, kept", kept, up, bf_act);
  best_of("down", down8, down, bf_down);
  best_of("grad down", args(rows8, row_scales, w28t, s1, act, F, D), down, bf_grad);
  best_of("grad up", args(wide8, row_scales, w18t, s2, rows, D, 2 * F), up, bf_grad_up);

  if (options.only != nullptr) return;
  const auto pass = [&](const char* title, double bytes, const std::function<void(Stream)>& body) {
    const double us = sustained_us(body, options.seconds);
    std::printf("  %-40s %9.1f us %6.2f TB/s\n", title, us, bytes / us / 1e6);
    std::fflush(stdout);
    return us;
  };
  const auto count = [](int64_t a, int64_t b) { return static_cast<double>(a) * static_cast<double>(b); };
  const Int8RowsArgs tokens = rows_args(x, x8, token_scales, T, D),
                     acts = rows_args(act, wide8, row_scales, R, F);
  Int8RowsArgs sorted = rows_args(x, rows8, row_scales, R, D);
  sorted.index = order;
  sorted.index_divisor = s.top_k;
  Int8RowsArgs scaled = sorted;
  scaled.column_scales = s2;
  scaled.offsets = offsets;
  scaled.num_groups = E;
  Int8RowsArgs wide = rows_args(gate_up, wide8, row_scales, R, 2 * F);
  wide.column_scales = s1;
  wide.offsets = offsets;
  wide.num_groups = E;
  pass("quantise tokens", 3 * count(T, D), [&](Stream q) { int8_rows(tokens, q); });
  pass("copy codes by expert", 2 * count(R, D), [&](Stream q) {
    gather_rows({x8, order, rows8, R, D / 2, s.top_k, DType::bf16}, q);
  });
  pass("quantise tokens, sorted by expert", 3 * count(R, D), [&](Stream q) { int8_rows(sorted, q); });
  pass("the same, times the weight's scales", 3 * count(R, D), [&](Stream q) { int8_rows(scaled, q); });
  pass("quantise activations", 3 * count(R, F), [&](Stream q) { int8_rows(acts, q); });
  pass("quantise gradients of gate and up", 6 * count(R, F), [&](Stream q) { int8_rows(wide, q); });
  pass("quantise weights up", 3 * count(E * 2 * F, D),
       [&](Stream q) { int8_rows(rows_args(w1, w18, s1, E * 2 * F, D), q); });
  pass("quantise weights down", 3 * count(E * D, F),
       [&](Stream q) { int8_rows(rows_args(w2, w28, s2, E * D, F), q); });
  pass("transpose codes up", 2 * count(E * 2 * F, D), [&](Stream q) {
    int8_transpose({static_cast<const int8_t*>(w18), static_cast<int8_t*>(w18t), E, 2 * F, D}, q);
  });
  pass("transpose codes down", 2 * count(E * D, F), [&](Stream q) {
    int8_transpose({static_cast<const int8_t*>(w28), static_cast<int8_t*>(w28t), E, D, F}, q);
  });
  const auto combine = [&](Stream q) {
    combine_rows({rows, inverse, weights, nullptr, y, T, D, s.top_k, DType::bf16}, q);
  };
  const double bf_layer = pass("layer forward, bf16, rows gathered", 0, [&](Stream q) {
    GroupedGemmArgs only = up_gathered;
    only.out = nullptr;
    grouped_gemm(only, q);
    grouped_gemm(down_bf, q);
    combine(q);
  });
  const double bf_copied = pass("layer forward, bf16, rows copied", 0, [&](Stream q) {
    GroupedGemmArgs only = up_act;
    only.out = nullptr;
    gather_rows({x, order, rows, R, D, s.top_k, DType::bf16}, q);
    grouped_gemm(only, q);
    grouped_gemm(down_bf, q);
    combine(q);
  });
  const double copied_us = pass("layer forward, int8, codes copied", 0, [&](Stream q) {
    int8_rows(tokens, q);
    gather_rows({x8, order, rows8, R, D / 2, s.top_k, DType::bf16}, q);
    int8_gemm(copied, q);
    int8_rows(acts, q);
    int8_gemm(down8, q);
    combine(q);
  });
  const double sorted_us = pass("layer forward, int8, rows quantised in order", 0, [&](Stream q) {
    int8_rows(sorted, q);
    int8_gemm(activated, q);
    int8_rows(acts, q);
    int8_gemm(down8, q);
    combine(q);
  });
  std::printf("  layer forward, quantising included: %.2f x bf16\n",
              std::min(bf_layer, bf_copied) / std::min(copied_us, sorted_us));
  std::fflush(stdout);
}

}  // namespace
}  // namespace moebius::kernels::cuda

int main(int count, char** names) {
  using namespace moebius::kernels::cuda;
  int first = 1;
  for (; first + 1 < count && std::strncmp(names[first], "--", 2) == 0; first += 2) {
    if (std::strcmp(names[first], "--seconds") == 0) options.seconds = std::atof(names[first + 1]);
    if (std::strcmp(names[first], "--only") == 0) options.only = names[first + 1];
    if (std::strcmp(names[first], "--variant") == 0) options.variant = names[first + 1];
  }
  const auto wanted = [&](const std::string& name) {
    return first == count ||
           std::any_of(names + first, names + count, [&](const char* each) { return name == each; });
  };
  for (const int64_t m : {1, 4, 16, 64, 256, 1024, 4096})
    if (wanted("dense") || (first < count && wanted("dense-" + std::to_string(m))))
      bench_dense(m, 4096, 4096);
  if (wanted("dense")) bench_dense(4096, 14336, 4096);
  for (const Shape& shape : kShapes)
    if (wanted(shape.name)) bench_shape(shape);
  return 0;
}
