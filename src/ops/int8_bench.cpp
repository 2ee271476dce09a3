// Times the CPU's int8 products beside oneDNN's (as libtorch carries it), the float ones and a stream of
// memory. Not a test: run it by hand,
//   moebius_int8_bench [threads] [MxNxK ...] [memory]
// Rounds in which every row is timed once, so that what else the machine does falls on all of them; medians.
//   int8        activations quantised before
//   int8+q      from fp32 activations, quantising included
//   onednn      u8 activations quantised before, s8 weights packed by oneDNN, scales per channel, fp32 out
//   copy, stream, read   of memory: memcpy, a copy past the caches (bytes read and written), reading alone
//   bf16, fp32  ops::linear; mm bf16, mm fp32: at::mm_out (oneDNN, MKL)
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/heap.h"
#include "base/parallel.h"
#include "ops/device.h"
#include "ops/int8_linear.h"
#include "ops/linear.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace moebius::ops {
namespace {

constexpr int kRounds = 15;

struct Row {
  std::string name;
  double work;  // operations or bytes
  std::function<void()> call;
  std::vector<double> seconds = {};

  double median() const { return seconds[seconds.size() / 2]; }
};

void measure(std::vector<Row>& rows) {
  for (int round = 0; round <= kRounds; ++round)
    for (Row& row : rows) {
      // What the rows before left in the caches is not this one's matter.
      double begin = steady_seconds(), spent = 0;
      int warm = 0;
      for (; warm < 3 || spent < 5e-3; ++warm) {
        row.call();
        spent = steady_seconds() - begin;
      }
      const int calls = static_cast<int>(std::clamp(5e-3 * warm / spent, 2.0, 1000.0));
      begin = steady_seconds();
      for (int i = 0; i < calls; ++i) row.call();
      if (round > 0) row.seconds.push_back((steady_seconds() - begin) / calls);
    }
  for (Row& row : rows) std::sort(row.seconds.begin(), row.seconds.end());
}

void print(const std::vector<Row>& rows, const std::string& yardstick) {
  double base = 0;
  for (const Row& row : rows)
    if (row.name == yardstick) base = row.median();
  for (const Row& row : rows)
    std::printf("  %-8s %10.1f us  %8.1f G/s  (best %.1f)  %.2f x %s\n", row.name.c_str(), row.median() * 1e6,
                row.work / row.median() / 1e9, row.work / row.seconds.front() / 1e9, base / row.median(),
                yardstick.c_str());
  std::fflush(stdout);
}

// oneDNN's linear layer of libtorch's quantised operators.
class OneDnnLinear {
 public:
  OneDnnLinear(const at::Tensor& codes, const at::Tensor& scales)
      : scales_(scales), zeros_(at::zeros({codes.size(0)}, at::kLong)) {
    torch::jit::Stack stack{codes, c10::IValue()};
    op("onednn::qlinear_prepack").callBoxed(stack);
    packed_ = stack.front().toTensor();
  }
  at::Tensor operator()(const at::Tensor& x_u8, double x_scale) const {
    torch::jit::Stack stack{
        x_u8,           x_scale,    int64_t{128},        packed_,
        scales_,        zeros_,     c10::IValue(),       1.0,
        int64_t{0},     at::kFloat, std::string("none"), c10::List<std::optional<at::Scalar>>(),
        std::string("")};
    op("onednn::qlinear_pointwise").callBoxed(stack);
    return stack.front().toTensor();
  }

 private:
  static c10::OperatorHandle op(const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  }
  at::Tensor packed_, scales_, zeros_;
};

double error_of(const at::Tensor& got, const at::Tensor& want) {
  return ((got.to(at::kDouble) - want).norm() / want.norm()).item<double>();
}

void bench_shape(int64_t m, int64_t n, int64_t k) {
  at::manual_seed(1);
  const at::Tensor codes = at::randint(-127, 128, {n, k}, at::TensorOptions().dtype(at::kChar));
  const at::Tensor scales = (at::rand({n}) + 0.5f) / 5000;
  const at::Tensor x_u8 = at::randint(1, 256, {m, k}, at::TensorOptions().dtype(at::kByte));
  constexpr double kXScale = 0.02;
  const at::Tensor x = (x_u8.to(at::kFloat) - 128) * kXScale, w = codes.to(at::kFloat) * scales.unsqueeze(1);
  const at::Tensor x_half = x.to(at::kBFloat16), w_half = w.to(at::kBFloat16);
  at::Tensor out = at::empty({m, n}), out_half = at::empty({m, n}, at::kBFloat16);
  const Int8Weight packed = pack_int8(codes, scales);
  const OneDnnLinear peer(codes, scales);
  at::Tensor x_scales = at::full({m}, kXScale, at::kFloat);
  kernels::Int8GemmArgs product{};
  product.a = x_u8.const_data_ptr<uint8_t>();
  product.a_scales = x_scales.const_data_ptr<float>();
  product.index_divisor = product.num_groups = 1;
  product.b = packed.packed.const_data_ptr<int8_t>();
  product.b_scales = packed.scales.const_data_ptr<float>();
  product.b_offsets = packed.offsets.const_data_ptr<int32_t>();
  product.out = out.mutable_data_ptr();
  product.num_rows = m;
  product.n = n;
  product.k = product.a_stride = k;
  const kernels::KernelTable& table = kernel_table(at::kCPU);

  const at::Tensor want = at::mm(x.to(at::kDouble), w.to(at::kDouble).t());
  table.int8_gemm(product, nullptr);
  std::printf("%ldx%ldx%ld, weights of %.1f MB as int8; errors: int8 %.1e, int8+q %.1e, onednn %.1e\n", m, n,
              k, static_cast<double>(n * k) / 1e6, error_of(out, want),
              error_of(int8_linear(x, packed, {}), want), error_of(peer(x_u8, kXScale), want));
  const double work = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  std::vector<Row> rows{{"onednn", work, [&] { peer(x_u8, kXScale); }},
                        {"int8", work, [&] { table.int8_gemm(product, nullptr); }},
                        {"int8+q", work, [&] { int8_linear(x, packed, {}); }},
                        {"bf16", work, [&] { ops::linear(x_half, w_half); }},
                        {"mm bf16", work, [&] { at::mm_out(out_half, x_half, w_half.t()); }},
                        {"fp32", work, [&] { ops::linear(x, w); }},
                        {"mm fp32", work, [&] { at::mm_out(out, x, w.t()); }}};
  measure(rows);
  print(rows, "onednn");
}

// Copies past the caches, so that the target is not read first: what a stream copy reaches at best.
void stream_copy(int8_t* to, const int8_t* from, int64_t bytes) {
#if defined(__SSE2__)
  for (int64_t i = 0; i < bytes; i += 16)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm_load_si128(reinterpret_cast<const __m128i*>(from + i)));
#else
  std::memcpy(to, from, static_cast<size_t>(bytes));
#endif
}

// What memory gives: reading alone, and copying (read and written bytes).
void bench_stream() {
  constexpr int64_t kBytes = int64_t{1} << 29, kPiece = 1 << 16;
  at::Tensor from = at::ones({kBytes}, at::kChar), to = at::ones({kBytes}, at::kChar);
  const auto* const source = from.const_data_ptr<int8_t>();
  auto* const target = to.mutable_data_ptr<int8_t>();
  const auto each_piece = [&](const std::function<void(int64_t)>& piece) {
    parallel_for(0, kBytes / kPiece, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) piece(i * kPiece);
    });
  };
  std::vector<Row> rows{
      {"copy", 2.0 * static_cast<double>(kBytes),
       [&] { each_piece([&](int64_t at) { std::memcpy(target + at, source + at, kPiece); }); }},
      {"stream", 2.0 * static_cast<double>(kBytes),
       [&] { each_piece([&](int64_t at) { stream_copy(target + at, source + at, kPiece); }); }},
      {"read", static_cast<double>(kBytes), [&] {
         each_piece([&](int64_t at) {
           if (std::memchr(source + at, 7, kPiece) != nullptr) std::abort();
         });
       }}};
  measure(rows);
  std::printf("memory, %ld MB\n", kBytes >> 20);
  print(rows, "copy");
}

int bench(int argc, char** argv) {
  const at::NoGradGuard no_grad;
  set_num_threads(argc > 1 ? std::atoi(argv[1]) : 1);
  std::printf("%d threads\n", num_threads());
  std::vector<std::string> shapes(argv + std::min(argc, 2), argv + argc);
  if (shapes.empty())
    shapes = {"1024x1024x1024", "256x1408x2048", "16x4096x4096", "4x4096x4096", "1x4096x4096", "memory"};
  for (const std::string& shape : shapes) {
    long m = 0, n = 0, k = 0;
    if (shape == "memory") {
      bench_stream();
    } else if (std::sscanf(shape.c_str(), "%ldx%ldx%ld", &m, &n, &k) == 3 && m > 0 && n > 0 && k > 0 &&
               k % 16 == 0) {
      bench_shape(m, n, k);
    } else {
      std::fprintf(stderr, "'%s' is neither MxNxK (K a multiple of 16) nor 'memory'\n", shape.c_str());
      return 2;
    }
  }
  return 0;
}

}  // namespace
}  // namespace moebius::ops

int main(int argc, char** argv) {
  moebius::keep_freed_memory();  // as the program does
  return moebius::ops::bench(argc, argv);
}
