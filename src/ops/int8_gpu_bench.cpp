// Times the integer products of a GPU beside the bf16 ones, libtorch's and the project's, in rounds in which
// every row is timed once, so that clock and heat fall on all of them; medians. Not a test: run it by hand on
// a Hopper GPU,
//   moebius_int8_gpu_bench [dense] [experts] [training]
// `us` is the time of recorded calls (no host between them), `eager` that of calls one after the other.
// int8+q rounds the activations inside the time.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "ops/device.h"
#include "ops/experts.h"
#include "ops/graph.h"
#include "ops/grouped_mm.h"
#include "ops/int8_linear.h"
#include "ops/int8_rows.h"
#include "ops/int8_training.h"
#include "ops/linear.h"
#include "ops/route.h"

namespace moebius::ops {
namespace {

constexpr int kRounds = 7;
constexpr double kRoundSeconds = 0.01;

struct GpuRow {
  std::string name;
  double work;  // operations
  std::function<void()> call;
  bool recorded = true;
  std::unique_ptr<Graph> graph = {};
  int calls = 1;
  std::vector<double> seconds = {};
  double eager = 0;

  double median() const { return seconds[seconds.size() / 2]; }
};

at::Device device() {
  return {at::kCUDA, 0};
}

double timed(const std::function<void()>& body) {
  cuda_plugin()->synchronize(0);
  const double begin = steady_seconds();
  body();
  cuda_plugin()->synchronize(0);
  return steady_seconds() - begin;
}

void repeat(const std::function<void()>& call, int times) {
  for (int i = 0; i < times; ++i) call();
}

// A failure of one row is printed and leaves the others alone.
void measure_on_gpu(std::vector<GpuRow>& rows, const std::string& yardstick) {
  const std::unique_ptr<GraphRecorder> recorder = make_graph_recorder(device());
  for (GpuRow& row : rows) {
    try {
      repeat(row.call, 3);
      const double once = timed([&] { repeat(row.call, 5); }) / 5;
      row.calls = std::clamp(static_cast<int>(kRoundSeconds / once), 2, 200);
      row.eager = timed([&] { repeat(row.call, row.calls); }) / row.calls;
      if (row.recorded) row.graph = recorder->record([&] { repeat(row.call, row.calls); });
    } catch (const std::exception& error) {
      std::printf("  %-34s FAILED: %.200s\n", row.name.c_str(), error.what());
      row.calls = 0;
    }
  }
  for (int round = 0; round <= kRounds; ++round)
    for (GpuRow& row : rows) {
      if (row.calls == 0) continue;
      const double seconds =
          timed([&] { row.graph ? row.graph->replay() : repeat(row.call, row.calls); }) / row.calls;
      if (round > 0) row.seconds.push_back(seconds);
    }
  double base = 0;
  for (GpuRow& row : rows) {
    if (row.seconds.empty()) continue;
    std::sort(row.seconds.begin(), row.seconds.end());
    if (row.name == yardstick) base = row.median();
  }
  for (const GpuRow& row : rows)
    if (!row.seconds.empty())
      std::printf("  %-34s %9.1f us %7.0f TOP/s  %.2f x %s   eager %9.1f us\n", row.name.c_str(),
                  row.median() * 1e6, row.work / row.median() / 1e12, base / row.median(), yardstick.c_str(),
                  row.eager * 1e6);
  std::fflush(stdout);
}

double relative_error(const at::Tensor& got, const at::Tensor& want) {
  return ((got.to(at::kFloat) - want.to(at::kFloat)).norm() / want.to(at::kFloat).norm()).item<double>();
}

at::Tensor random_bf16(at::IntArrayRef sizes, double scale) {
  return at::randn(sizes, at::TensorOptions().dtype(at::kBFloat16).device(device())).mul_(scale);
}

void bench_dense(int64_t m, int64_t n, int64_t k) {
  const at::Tensor x = random_bf16({m, k}, 1), w = random_bf16({n, k}, 0.02);
  const Int8TrainingWeight coded = int8_training_weight(w.unsqueeze(0), false);
  const at::Tensor out = at::empty({m, n}, x.options());
  const CodedRows rows = coded_rows(x, Int8Activations::one_digit, 0);
  const kernels::Int8GemmArgs product = int8_product_of(rows, coded.forward, out);
  std::printf("dense %ld x %ld x %ld: error %.1e of bf16's\n", m, n, k,
              relative_error(int8_linear(x, coded.forward, {}), at::mm(x, w.t())));
  const double work = 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
  std::vector<GpuRow> all;
  all.push_back({"at::mm bf16", work, [&] { at::mm(x, w.t()); }});
  all.push_back({"int8", work, [&] { int8_kernels(device()).int8_gemm(product, current_stream(device())); }});
  all.push_back({"int8+q", work, [&] { int8_linear(x, coded.forward, {}); }});
  all.push_back(
      {"int8+q, two digits", work, [&] { int8_linear(x, coded.forward, {}, Int8Activations::two_digits); }});
  measure_on_gpu(all, "at::mm bf16");
}

struct ExpertShape {
  const char* name;
  int64_t tokens, width, hidden, experts, top_k;
};
constexpr ExpertShape kExpertShapes[] = {{"mixtral", 8192, 4096, 14336, 8, 2},
                                         {"qwen3-30b, 8k tokens", 8192, 2048, 768, 128, 8},
                                         {"qwen3-30b, 32k tokens", 32768, 2048, 768, 128, 8},
                                         {"olmoe", 16384, 2048, 1024, 64, 8},
                                         {"olmoe, 64 tokens", 64, 2048, 1024, 64, 8}};

class Experts {
 public:
  explicit Experts(const ExpertShape& shape)
      : s_(shape),
        x_(random_bf16({s_.tokens, s_.width}, 1)),
        gate_up_(random_bf16({s_.experts, 2 * s_.hidden, s_.width}, 0.02)),
        down_(random_bf16({s_.experts, s_.width, s_.hidden}, 0.02)),
        routing_(route(x_.mm(random_bf16({s_.width, s_.experts}, 0.02)).to(at::kFloat), {}, {}, 1,
                       {.top_k = s_.top_k})) {
    routing_.weights_TK = routing_.weights_TK.detach();
    coded_gate_up_ = int8_training_weight(gate_up_, true);
    coded_down_ = int8_training_weight(down_, false);
  }

  double up_work() const {
    return 4.0 * static_cast<double>(s_.tokens * s_.top_k * s_.width) * static_cast<double>(s_.hidden);
  }

  void products() const {
    const int64_t num_rows = s_.tokens * s_.top_k;
    const at::Tensor rows = gather_rows_of(x_), act = random_bf16({num_rows, s_.hidden}, 1),
                     ends = routing_.offsets_E1.narrow(0, 1, s_.experts), &offsets = routing_.offsets_E1;
    Int8Weight plain_up = coded_gate_up_.forward;
    plain_up.gate_up = false;
    const CodedRows x8 = coded_rows(rows, Int8Activations::one_digit, 0),
                    act8 = coded_rows(act, Int8Activations::one_digit, 0);
    std::printf("%s, up product\n", s_.name);
    std::vector<GpuRow> up;
    up.push_back(
        {"at::_grouped_mm bf16", up_work(), [&] { at::_grouped_mm(rows, gate_up_.transpose(1, 2), ends); }});
    up.push_back({"our bf16", up_work(), [&] { grouped_mm({rows, {}, 1}, gate_up_, offsets); }});
    up.push_back(
        {"int8", up_work(), [&] { int8_grouped(x8, plain_up, {}, offsets, num_rows, at::kBFloat16); }});
    measure_on_gpu(up, "at::_grouped_mm bf16");
    std::printf("%s, down product\n", s_.name);
    std::vector<GpuRow> down;
    down.push_back(
        {"at::_grouped_mm bf16", up_work() / 2, [&] { at::_grouped_mm(act, down_.transpose(1, 2), ends); }});
    down.push_back({"our bf16", up_work() / 2, [&] { grouped_mm({act, {}, 1}, down_, offsets); }});
    down.push_back({"int8", up_work() / 2,
                    [&] { int8_grouped(act8, coded_down_.forward, {}, offsets, num_rows, at::kBFloat16); }});
    measure_on_gpu(down, "at::_grouped_mm bf16");
  }

  void layer() const {
    const double work = 1.5 * up_work();
    const at::NoGradGuard no_grad;
    const auto bf16 = [&] { return expert_ffn(x_, gate_up_, down_, routing_); };
    const auto int8 = [&] {
      return int8_expert_ffn(x_, coded_gate_up_.forward, coded_down_.forward, routing_,
                             Int8Activations::one_digit);
    };
    std::printf("%s, forward of the layer: error %.1e of bf16's\n", s_.name, relative_error(int8(), bf16()));
    std::vector<GpuRow> all;
    all.push_back({"bf16", work, bf16});
    all.push_back({"int8+q", work, int8});
    measure_on_gpu(all, "bf16");
  }

  void training() {
    const std::vector<at::Tensor> leaves{x_.detach().requires_grad_(), gate_up_.detach().requires_grad_(),
                                         down_.detach().requires_grad_(),
                                         routing_.weights_TK.detach().requires_grad_()};
    const at::Tensor grad = random_bf16({s_.tokens, s_.width}, 1);
    Routing routing = routing_;
    routing.weights_TK = leaves[3];
    const auto backward = [&](const at::Tensor& y) { return torch::autograd::grad({y}, leaves, {grad}); };
    const auto bf16 = [&] { return backward(expert_ffn(leaves[0], leaves[1], leaves[2], routing)); };
    const auto int8 = [&] {
      return backward(
          int8_training_expert_ffn(leaves[0], leaves[1], leaves[2], coded_gate_up_, coded_down_, routing));
    };
    {
      const auto want = bf16(), got = int8();
      std::printf("%s, forward and backward: errors of gradients", s_.name);
      for (size_t i = 0; i < want.size(); ++i) std::printf(" %.1e", relative_error(got[i], want[i]));
      std::printf("\n");
    }
    std::vector<GpuRow> all;
    all.push_back({"bf16", 4.5 * up_work(), bf16, false});
    all.push_back({"int8+q", 4.5 * up_work(), int8, false});
    all.push_back({"rounding the weights", 4.5 * up_work(),
                   [&] {
                     coded_gate_up_ = int8_training_weight(gate_up_, true, std::move(coded_gate_up_));
                     coded_down_ = int8_training_weight(down_, false, std::move(coded_down_));
                   },
                   false});
    measure_on_gpu(all, "bf16");
  }

 private:
  at::Tensor gather_rows_of(const at::Tensor& x) const {
    return x.index_select(0, routing_.order_R.div(s_.top_k, "floor"));
  }

  ExpertShape s_;
  at::Tensor x_, gate_up_, down_;
  Routing routing_;
  Int8TrainingWeight coded_gate_up_, coded_down_;
};

int bench_gpu(int count, char** words) {
  if (cuda_plugin() == nullptr || !has_int8_products(device())) {
    std::fprintf(stderr, "no GPU with integer products: %s\n", load_cuda_plugin().why.c_str());
    return 2;
  }
  cuda_plugin()->use_own_stream(0);
  const auto wanted = [&](const char* word) {
    return count < 2 || std::any_of(words + 1, words + count,
                                    [&](const char* each) { return std::strcmp(each, word) == 0; });
  };
  if (wanted("dense")) {
    const at::NoGradGuard no_grad;
    for (const int64_t m : {1, 16, 64, 256, 1024, 4096}) bench_dense(m, 4096, 4096);
    for (const int64_t m : {16, 64}) bench_dense(m, 28672, 4096);
    bench_dense(4096, 14336, 4096);
  }
  for (const ExpertShape& shape : kExpertShapes) {
    Experts experts(shape);
    if (wanted("experts")) {
      const at::NoGradGuard no_grad;
      experts.products();
      experts.layer();
    }
    if (wanted("training")) experts.training();
  }
  return 0;
}

}  // namespace
}  // namespace moebius::ops

int main(int argc, char** argv) {
  return moebius::ops::bench_gpu(argc, argv);
}
