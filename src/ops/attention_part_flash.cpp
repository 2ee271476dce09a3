// Shapes: T queries of this process, N keys of the part, M and P those of them that a pass sees, H query
// heads and Hk key heads of d elements.
#include "ops/attention_part_flash.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace moebius::ops::flash {
namespace {

using kernels::AttentionPiece;

bool is_triangle(const AttentionPiece& piece) {
  return piece.first_seen == 1 && piece.num_queries() == piece.num_keys();
}
bool is_whole(const AttentionPiece& piece) {
  return piece.first_seen >= piece.num_keys();
}

at::Tensor to_device(const at::Tensor& host, at::Device device) {
  if (device.is_cpu()) return host;
  return host.pin_memory().to(device, /*non_blocking=*/true);
}

// Runs of rows, one behind another: a view where they are neighbours in memory, else by their numbers.
class Rows {
 public:
  void add(int64_t begin, int64_t end) {
    adjoin_ = adjoin_ && (runs_.empty() || runs_.back().second == begin);
    runs_.emplace_back(begin, end);
    borders_.push_back(static_cast<int32_t>(borders_.back() + end - begin));
    longest_ = std::max(longest_, end - begin);
  }
  int64_t longest() const { return longest_; }
  at::Tensor borders(at::Device device) const { return to_device(at::tensor(borders_, at::kInt), device); }
  // Numbers of the rows; undefined where they adjoin.
  at::Tensor numbers(at::Device device) const {
    if (adjoin_) return {};
    std::vector<int64_t> all;
    for (const auto& [begin, end] : runs_)
      for (int64_t row = begin; row < end; ++row) all.push_back(row);
    return to_device(at::tensor(all, at::kLong), device);
  }
  at::Tensor of(const at::Tensor& x, const at::Tensor& numbers, int64_t dim = 0) const {
    return numbers.defined() ? x.index_select(dim, numbers)
                             : x.narrow(dim, runs_.front().first, borders_.back());
  }
  // Writes rows back, or adds them.
  void put(const at::Tensor& x, const at::Tensor& numbers, const at::Tensor& rows, int64_t dim = 0) const {
    if (numbers.defined()) {
      x.index_copy_(dim, numbers, rows);
    } else {
      of(x, numbers, dim).copy_(rows);
    }
  }
  void add_to(const at::Tensor& x, const at::Tensor& numbers, const at::Tensor& rows) const {
    if (numbers.defined()) {
      x.index_add_(0, numbers, rows);
    } else {
      of(x, numbers).add_(rows);
    }
  }

 private:
  std::vector<std::pair<int64_t, int64_t>> runs_;
  std::vector<int32_t> borders_{0};
  int64_t longest_ = 0;
  bool adjoin_ = true;
};

// Pieces of one kind, no query in two of them.
struct Pass {
  bool causal = false;
  Rows queries, keys;
  int64_t last_query = -1;
};

std::vector<Pass> passes_of(const AttentionPieces& pieces) {
  std::vector<Pass> passes;
  for (const AttentionPiece& piece : pieces) {
    if (piece.num_queries() == 0 || piece.num_keys() == 0) continue;
    const bool causal = is_triangle(piece);
    auto pass = std::find_if(passes.begin(), passes.end(), [&](const Pass& each) {
      return each.causal == causal && each.last_query <= piece.query_begin;
    });
    if (pass == passes.end()) {
      passes.emplace_back();
      pass = passes.end() - 1;
      pass->causal = causal;
    }
    pass->queries.add(piece.query_begin, piece.query_end);
    pass->keys.add(piece.key_begin, piece.key_end);
    pass->last_query = piece.query_end;
  }
  return passes;
}

std::optional<double> scale_or_none(const AttentionShape& shape) {
  return shape.scale > 0 ? std::optional<double>(shape.scale) : std::nullopt;
}

// The tensors of a pass.
struct Inputs {
  at::Tensor query_rows, key_rows, cu_queries, cu_keys;
  at::Tensor q_MHd, k_PHd, v_PHd;
};

Inputs inputs_of(const Pass& pass, const at::Tensor& qkv, const at::Tensor& kv, const AttentionShape& shape) {
  const at::Device device = qkv.device();
  const int64_t width = shape.num_kv_heads * shape.head_dim;
  Inputs in{pass.queries.numbers(device),
            pass.keys.numbers(device),
            pass.queries.borders(device),
            pass.keys.borders(device),
            {},
            {},
            {}};
  const auto heads = [&](const at::Tensor& x, int64_t count) {
    return x.unflatten(1, {count, shape.head_dim});
  };
  in.q_MHd = heads(pass.queries.of(qkv.narrow(1, 0, shape.num_heads * shape.head_dim), in.query_rows),
                   shape.num_heads);
  const at::Tensor keys = pass.keys.of(kv, in.key_rows);
  in.k_PHd = heads(keys.narrow(1, 0, width), shape.num_kv_heads);
  in.v_PHd = heads(keys.narrow(1, width, width), shape.num_kv_heads);
  return in;
}

}  // namespace

bool takes(const at::Tensor& qkv, const AttentionPieces& pieces, const AttentionShape& shape) {
  return qkv.is_cuda() && qkv.scalar_type() == at::kBFloat16 && shape.window == 0 &&
         shape.value_width() == shape.head_dim && shape.head_dim % 8 == 0 && shape.head_dim <= 256 &&
         std::all_of(pieces.begin(), pieces.end(),
                     [](const AttentionPiece& piece) { return is_triangle(piece) || is_whole(piece); });
}

void attend_to_part(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                    const AttentionShape& shape, AttentionSums& sums) {
  for (const Pass& pass : passes_of(pieces)) {
    const Inputs in = inputs_of(pass, qkv, kv, shape);
    auto [out_MHd, lse_HM, random_state, unused, mask] = at::_flash_attention_forward(
        in.q_MHd, in.k_PHd, in.v_PHd, in.cu_queries, in.cu_keys, pass.queries.longest(), pass.keys.longest(),
        0.0, pass.causal, /*return_debug_mask=*/false, scale_or_none(shape));
    MOEBIUS_CHECK(lse_HM.dim() == 2 && lse_HM.size(1) == in.q_MHd.size(0), "sums of the flash kernel are ",
                  lse_HM.sizes());
    sums.random_state = random_state;
    sums.unused = unused;
    const at::Tensor before_HM = pass.queries.of(sums.lse_HT, in.query_rows, 1);
    const at::Tensor all_HM = at::logaddexp(before_HM, lse_HM);
    const auto factor = [&](const at::Tensor& own_HM) { return (own_HM - all_HM).exp_().t().unsqueeze(2); };
    at::Tensor mean_MHd = pass.queries.of(sums.out_TC, in.query_rows).view(out_MHd.sizes());
    mean_MHd = (mean_MHd * factor(before_HM)).add_(out_MHd.to(at::kFloat).mul_(factor(lse_HM)));
    pass.queries.put(sums.out_TC, in.query_rows, mean_MHd.flatten(1));
    pass.queries.put(sums.lse_HT, in.query_rows, all_HM, 1);
  }
}

void attend_to_part_backward(const at::Tensor& qkv, const at::Tensor& kv, const AttentionPieces& pieces,
                             const AttentionShape& shape, const at::Tensor& out, const AttentionSums& sums,
                             const at::Tensor& grad_out, const at::Tensor& grad_q,
                             const at::Tensor& grad_kv) {
  const int64_t width = shape.num_kv_heads * shape.head_dim;
  for (const Pass& pass : passes_of(pieces)) {
    const Inputs in = inputs_of(pass, qkv, kv, shape);
    const at::Tensor out_MHd = pass.queries.of(out, in.query_rows).view(in.q_MHd.sizes()),
                     grad_out_MHd = pass.queries.of(grad_out, in.query_rows).view(in.q_MHd.sizes());
    // With the sums over all keys the weights are those of the whole row.
    const auto [grad_q_MHd, grad_k_PHd, grad_v_PHd] =
        at::_flash_attention_backward(grad_out_MHd, in.q_MHd, in.k_PHd, in.v_PHd, out_MHd,
                                      pass.queries.of(sums.lse_HT, in.query_rows, 1).contiguous(),
                                      in.cu_queries, in.cu_keys, pass.queries.longest(), pass.keys.longest(),
                                      0.0, pass.causal, sums.random_state, sums.unused, scale_or_none(shape));
    pass.queries.add_to(grad_q, in.query_rows, grad_q_MHd.flatten(1).to(at::kFloat));
    pass.keys.add_to(grad_kv.narrow(1, 0, width), in.key_rows, grad_k_PHd.flatten(1).to(at::kFloat));
    pass.keys.add_to(grad_kv.narrow(1, width, width), in.key_rows, grad_v_PHd.flatten(1).to(at::kFloat));
  }
}

}  // namespace moebius::ops::flash
