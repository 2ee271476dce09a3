// Times the CPU's int8 product beside the bf16 and fp32 ones and a stream of memory. Not a test: run it by
// hand,
//   moebius_int8_bench [threads] [MxNxK ...]
// Rounds in which every row is timed once, so that what else the machine does falls on all of them;
// medians. int8: activations already quantised; int8+q: fp32 activations, quantising included; bf16, fp32:
// grouped_gemm with one group. Weights of the int8 product are packed before, as for serving.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/parallel.h"
#include "kernels/cpu/bf16.h"
#include "kernels/cpu/int8_tile.h"
#include "kernels/cpu/kernels.h"

namespace moebius::kernels::cpu {
namespace {

constexpr int kRounds = 15;

// Memory of its own that begins at a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(
            static_cast<T*>(std::aligned_alloc(64, static_cast<size_t>(count) * sizeof(T) / 64 * 64 + 64))) {}
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  T* get() { return data_; }

 private:
  T* data_;
};

struct Row {
  std::string name;
  double work;  // operations or bytes
  std::function<void()> call;
  std::vector<double> seconds = {};
};

void measure(std::vector<Row>& rows) {
  for (int round = 0; round <= kRounds; ++round)
    for (Row& row : rows) {
      double begin = steady_seconds();
      row.call();
      const int calls = static_cast<int>(std::clamp(2e-3 / (steady_seconds() - begin), 1.0, 1000.0));
      begin = steady_seconds();
      for (int i = 0; i < calls; ++i) row.call();
      if (round > 0) row.seconds.push_back((steady_seconds() - begin) / calls);
    }
  for (Row& row : rows) std::sort(row.seconds.begin(), row.seconds.end());
}

void print(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    const double median = row.seconds[row.seconds.size() / 2], best = row.seconds.front();
    std::printf("  %-8s %10.1f us  %8.1f G/s  (best %.1f)\n", row.name.c_str(), median * 1e6,
                row.work / median / 1e9, row.work / best / 1e9);
  }
  std::fflush(stdout);
}

void bench_shape(int64_t m, int64_t n, int64_t k) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> code(-127, 127);
  Buffer<float> x(m * k), w(n * k), out(m * n);
  Buffer<Bf16> x_half(m * k), w_half(n * k), out_half(m * n);
  Buffer<int8_t> codes(n * k), packed(int8_packed_bytes(1, n, k));
  for (int64_t i = 0; i < m * k; ++i) from_float(x.get()[i] = normal(random), x_half.get()[i]);
  for (int64_t i = 0; i < n * k; ++i) {
    codes.get()[i] = static_cast<int8_t>(code(random));
    from_float(w.get()[i] = static_cast<float>(codes.get()[i]), w_half.get()[i]);
  }
  const int64_t padded_n = int8_padded_n(n), stride = int8_padded_k(k);
  Buffer<float> scales(padded_n), row_scales(m);
  Buffer<int32_t> offsets(padded_n);
  Buffer<uint8_t> a(m * stride);
  const float one = 1.0f / 127;
  int8_pack({codes.get(), &one, packed.get(), scales.get(), offsets.get(), 1, n, k, true, Int8Columns::plain},
            nullptr);
  Int8RowsArgs quantise{};
  quantise.x = x.get();
  quantise.index_divisor = 1;
  quantise.codes = a.get();
  quantise.scales = row_scales.get();
  quantise.num_rows = m;
  quantise.width = quantise.x_stride = k;
  quantise.codes_stride = stride;
  int8_rows(quantise, nullptr);
  Int8GemmArgs product{};
  product.a = a.get();
  product.a_scales = row_scales.get();
  product.index_divisor = product.num_groups = 1;
  product.b = packed.get();
  product.b_scales = scales.get();
  product.b_offsets = offsets.get();
  product.out = out.get();
  product.num_rows = m;
  product.n = n;
  product.k = k;
  product.a_stride = stride;
  GroupedGemmArgs plain{};
  plain.a = x.get();
  plain.b = w.get();
  plain.out = out.get();
  plain.num_groups = plain.index_divisor = 1;
  plain.num_rows = m;
  plain.n = n;
  plain.k = k;
  GroupedGemmArgs half = plain;
  half.a = x_half.get();
  half.b = w_half.get();
  half.out = out_half.get();
  half.dtype = half.out_dtype = DType::bf16;
  const double work = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  std::vector<Row> rows{{"int8", work, [&] { int8_gemm(product, nullptr); }},
                        {"int8+q", work,
                         [&] {
                           int8_rows(quantise, nullptr);
                           int8_gemm(product, nullptr);
                         }},
                        {"bf16", work, [&] { grouped_gemm(half, nullptr); }},
                        {"fp32", work, [&] { grouped_gemm(plain, nullptr); }}};
  measure(rows);
  std::printf("%ldx%ldx%ld, weights of %.1f MB as int8, %s\n", m, n, k, static_cast<double>(n * k) / 1e6,
              int8_tiles().name);
  print(rows);
}

// What memory gives: reading alone, and copying (read and written bytes).
void bench_stream() {
  constexpr int64_t kBytes = int64_t{1} << 29;
  Buffer<char> from(kBytes), to(kBytes);
  std::memset(from.get(), 1, kBytes);
  std::memset(to.get(), 1, kBytes);
  constexpr int64_t kPiece = 1 << 16;
  const auto each_piece = [&](const std::function<void(int64_t)>& piece) {
    parallel_for(0, kBytes / kPiece, 64, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) piece(i * kPiece);
    });
  };
  volatile int64_t seen = 0;
  const auto read = [&](int64_t at) {
    const auto* p = reinterpret_cast<const int64_t*>(from.get() + at);
    int64_t sums[8] = {};
    for (int64_t i = 0; i < kPiece / 8; i += 8)
      for (int64_t j = 0; j < 8; ++j) sums[j] += p[i + j];
    for (const int64_t sum : sums) seen = seen + sum;
  };
  std::vector<Row> rows{
      {"read", static_cast<double>(kBytes), [&] { each_piece(read); }},
      {"copy", 2.0 * static_cast<double>(kBytes),
       [&] { each_piece([&](int64_t at) { std::memcpy(to.get() + at, from.get() + at, kPiece); }); }}};
  measure(rows);
  std::printf("memory, %ld MB\n", kBytes >> 20);
  print(rows);
}

}  // namespace
}  // namespace moebius::kernels::cpu

int main(int argc, char** argv) {
  using namespace moebius::kernels::cpu;  // NOLINT
  moebius::set_num_threads(argc > 1 ? std::atoi(argv[1]) : 1);
  std::printf("%d threads\n", moebius::num_threads());
  bool stream = argc <= 2;
  std::vector<std::string> shapes(argv + std::min(argc, 2), argv + argc);
  if (shapes.empty())
    shapes = {"1024x1024x1024", "256x1408x2048", "16x4096x4096", "4x4096x4096", "1x4096x4096"};
  for (const std::string& shape : shapes) {
    long m = 0, n = 0, k = 0;
    if (shape == "memory") {
      stream = true;
    } else if (std::sscanf(shape.c_str(), "%ldx%ldx%ld", &m, &n, &k) == 3 && m > 0 && n > 0 && k > 0) {
      bench_shape(m, n, k);
    } else {
      std::fprintf(stderr, "'%s' is neither MxNxK nor 'memory'\n", shape.c_str());
      return 2;
    }
  }
  if (stream) bench_stream();
  return 0;
}
