// Shapes: T tokens, R rows (T*K), D model width, F expert width, E experts, K experts per token.
#include "cli/product_tuning.h"

#include <ATen/ops/empty_like.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <cstdio>
#include <limits>

#include "base/error.h"
#include "cli/layer_timing.h"
#include "ops/device.h"
#include "ops/expert_rows.h"
#include "ops/grouped_mm.h"
#include "ops/route.h"

namespace moebius::cli {
namespace {

using kernels::GroupedGemmArgs;
using kernels::GroupedGemmKind;
using ops::ProductTable;
using ops::RoutedOperand;

constexpr double kSeconds = 0.06;  // each way runs, before it is timed and while it is
constexpr double kNever = std::numeric_limits<double>::infinity();

double fastest_variant(const ProductTimes& times, std::string* name) {
  double least = kNever;
  for (const auto& [variant, ms] : times.variant_ms) {
    if (ms >= least) continue;
    least = ms;
    if (name != nullptr) *name = variant;
  }
  return least;
}

double fastest(const ProductTimes& times) {
  return std::min(fastest_variant(times, nullptr), times.other_ms);
}

ProductTable::Entry plain_entry(const ProductTimes& times) {
  ProductTable::Entry entry{times.key, {}, times.other_ms};
  std::string variant;
  const double ms = fastest_variant(times, &variant);
  if (ms <= times.other_ms) entry = {times.key, {false, variant}, ms};
  return entry;
}

// copied_ms: what the plain product and the copy take.
ProductTable::Entry routed_entry(const ProductTimes& times, double gathered_ms, double copied_ms) {
  ProductTable::Entry entry{times.key, {}, 0};
  entry.ms = fastest_variant(times, &entry.way.variant);
  if (gathered_ms <= copied_ms) return entry;
  return {times.key, {true, ""}, copied_ms};
}

// The tensors of a layer's products, and the products.
class LayerProducts {
 public:
  LayerProducts(const LayerShape& shape, at::Device device) : device_(device) {
    const auto options = at::TensorOptions(at::kBFloat16).device(device);
    const int64_t T = shape.tokens, D = shape.dim, F = shape.expert_dim, E = shape.experts,
                  R = T * shape.top_k;
    x_TD_ = at::randn({T, D}, options);
    const at::Tensor logits_TE = x_TD_.mm(at::randn({E, D}, options).mul_(0.02).t()).to(at::kFloat);
    routing_ = ops::route(logits_TE, {}, {}, 1, {.top_k = shape.top_k});
    rows_RD_ = at::randn({R, D}, options);
    rows_R2F_ = at::randn({R, 2 * F}, options);
    rows_RF_ = at::randn({R, F}, options);
    gate_up_E2FD_ = at::randn({E, 2 * F, D}, options).mul_(0.02);
    down_EDF_ = at::randn({E, D, F}, options).mul_(0.02);
  }

  double copy_ms() const {
    return mean_call_ms([&] { ops::gather_rows(x_TD_, routing_.order_R, routing_.weights_TK.size(1)); },
                        kSeconds, device_);
  }

  ProductTimes up(bool routed, bool activated) const {
    ProductTimes times = product(GroupedGemmKind::forward, routed ? x_TD_ : rows_RD_, gate_up_E2FD_,
                                 routed ? RoutedOperand::a : RoutedOperand::none, rows_R2F_,
                                 activated ? rows_RF_ : at::Tensor());
    if (!routed && activated) {
      const double apart = mean_call_ms([&] { ops::activate_rows(rows_R2F_, routing_); }, kSeconds, device_);
      times.other_ms = apart + fastest(up(false, false));
    }
    return times;
  }
  ProductTimes down() const {
    return product(GroupedGemmKind::forward, rows_RF_, down_EDF_, RoutedOperand::none, rows_RD_, {});
  }
  ProductTimes grad_up() const {
    return product(GroupedGemmKind::input_grad, rows_R2F_, gate_up_E2FD_, RoutedOperand::none, rows_RD_, {});
  }
  ProductTimes grad_down(bool routed) const {
    return product(GroupedGemmKind::input_grad, routed ? x_TD_ : rows_RD_, down_EDF_,
                   routed ? RoutedOperand::a : RoutedOperand::none, rows_RF_, {});
  }
  ProductTimes weight_down(bool routed) const {
    return product(GroupedGemmKind::weight_grad, routed ? x_TD_ : rows_RD_, rows_RF_,
                   routed ? RoutedOperand::a : RoutedOperand::none, at::empty_like(down_EDF_), {});
  }
  ProductTimes weight_up(bool routed) const {
    return product(GroupedGemmKind::weight_grad, rows_R2F_, routed ? x_TD_ : rows_RD_,
                   routed ? RoutedOperand::b : RoutedOperand::none, at::empty_like(gate_up_E2FD_), {});
  }

 private:
  ProductTimes product(GroupedGemmKind kind, const at::Tensor& a, const at::Tensor& b, RoutedOperand routed,
                       const at::Tensor& out, const at::Tensor& act) const {
    const kernels::KernelTable& table = ops::kernel_table(device_);
    const at::Tensor& w = kind == GroupedGemmKind::weight_grad ? out : b;
    GroupedGemmArgs args{};
    args.kind = kind;
    args.a = a.const_data_ptr();
    args.b = b.const_data_ptr();
    args.out = out.mutable_data_ptr();
    args.act = act.defined() ? act.mutable_data_ptr() : nullptr;
    args.offsets = routing_.offsets_E1.const_data_ptr<int32_t>();
    args.num_groups = w.size(0);
    args.num_rows = rows_RD_.size(0);
    args.n = w.size(1);
    args.k = w.size(2);
    const int32_t* const order = routing_.order_R.const_data_ptr<int32_t>();
    if (routed == RoutedOperand::a) args.a_index = order;
    if (routed == RoutedOperand::b) args.b_index = order;
    args.index_divisor = routed == RoutedOperand::none ? 1 : routing_.weights_TK.size(1);
    args.dtype = args.out_dtype = kernels::DType::bf16;

    ProductTimes times{ops::key_of(args), {}, kNever};
    constexpr int32_t kMost = 16;
    const char* names[kMost];
    const int32_t count = table.grouped_gemm_serves(args)
                              ? std::min(kMost, table.grouped_gemm_variants(args, names, kMost))
                              : 0;
    for (int32_t i = 0; i < count; ++i) {
      args.variant = i + 1;
      times.variant_ms.emplace_back(
          names[i],
          mean_call_ms([&] { table.grouped_gemm(args, ops::current_stream(device_)); }, kSeconds, device_));
    }
    if (routed == RoutedOperand::none && !act.defined())
      times.other_ms =
          mean_call_ms([&] { ops::library_grouped_mm(kind, a, b, routing_.offsets_E1); }, kSeconds, device_);
    return times;
  }

  const at::Device device_;
  ops::Routing routing_;
  at::Tensor x_TD_, rows_RD_, rows_R2F_, rows_RF_, gate_up_E2FD_, down_EDF_;
};

void add_line(std::string& text, const char* title, const ProductTimes& times) {
  char line[160];
  std::snprintf(line, sizeof line, "  %-22s", title);
  text += line;
  for (const auto& [name, ms] : times.variant_ms) {
    std::snprintf(line, sizeof line, "  %s %.4g", name.c_str(), ms);
    text += line;
  }
  if (times.other_ms < kNever) {
    std::snprintf(line, sizeof line, "  %s %.4g", times.key.activated ? "apart" : "libtorch", times.other_ms);
    text += line;
  }
  text += '\n';
}

}  // namespace

std::vector<ProductTable::Entry> fastest_ways(const LayerProductTimes& t) {
  std::vector<ProductTable::Entry> entries;
  for (const ProductTimes* plain :
       {&t.up, &t.up_again, &t.down, &t.grad_up, &t.grad_down, &t.weight_down, &t.weight_up})
    entries.push_back(plain_entry(*plain));
  const auto add_routed = [&](const ProductTimes& routed, const ProductTimes& plain) {
    entries.push_back(routed_entry(routed, fastest(routed), t.copy_ms + fastest(plain)));
  };
  add_routed(t.routed_up, t.up);
  add_routed(t.routed_up_again, t.up_again);
  add_routed(t.routed_weight_up, t.weight_up);
  const double gathered = fastest(t.routed_grad_down) + fastest(t.routed_weight_down);
  const double copied = t.copy_ms + fastest(t.grad_down) + fastest(t.weight_down);
  entries.push_back(routed_entry(t.routed_grad_down, gathered, copied));
  entries.push_back(routed_entry(t.routed_weight_down, gathered, copied));
  return entries;
}

LayerProductTimes time_products(const LayerShape& shape, at::Device device) {
  if (device.is_cpu() || ops::kernel_table(device).grouped_gemm_variants == nullptr)
    throw_user_error(
        "--tune measures the kernels of a GPU, and this run is on the CPU, where there is one way");
  const LayerProducts products(shape, device);
  LayerProductTimes times{};
  times.copy_ms = products.copy_ms();
  times.up = products.up(false, true);
  times.routed_up = products.up(true, true);
  times.up_again = products.up(false, false);
  times.routed_up_again = products.up(true, false);
  times.down = products.down();
  times.grad_up = products.grad_up();
  times.grad_down = products.grad_down(false);
  times.routed_grad_down = products.grad_down(true);
  times.weight_down = products.weight_down(false);
  times.routed_weight_down = products.weight_down(true);
  times.weight_up = products.weight_up(false);
  times.routed_weight_up = products.weight_up(true);
  return times;
}

std::string tuning_text(const LayerProductTimes& t) {
  char line[80];
  std::snprintf(line, sizeof line, "  copy of routed rows %.4g ms; milliseconds of the products by kernel:\n",
                t.copy_ms);
  std::string text = line;
  add_line(text, "up, activation", t.up);
  add_line(text, "routed up, activation", t.routed_up);
  add_line(text, "up", t.up_again);
  add_line(text, "routed up", t.routed_up_again);
  add_line(text, "down", t.down);
  add_line(text, "gradient of up", t.grad_up);
  add_line(text, "gradient of down", t.grad_down);
  add_line(text, "routed grad. of down", t.routed_grad_down);
  add_line(text, "weights of down", t.weight_down);
  add_line(text, "routed weights of down", t.routed_weight_down);
  add_line(text, "weights of up", t.weight_up);
  add_line(text, "routed weights of up", t.routed_weight_up);
  return text;
}

}  // namespace moebius::cli
