#include "parallel/layout.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/concat.h"
#include "base/error.h"
#include "config/batching.h"
#include "parallel/tensor_axis.h"

namespace moebius::parallel {
namespace {

// Where the ranks of a group lie in the world: rank = base + i * stride, and how many.
struct Run {
  int stride, count;
};

}  // namespace

int64_t grid_side(const config::ParallelConfig& config) {
  int64_t side = 1;
  if (config.tp_mode == "2d")
    while (side * side < config.tp) ++side;
  return side;
}

const char* name_of(Axis axis) {
  static constexpr const char* kNames[] = {
      "world", "pp",       "pp_back", "dp",      "fsdp",      "cp",     "tp",        "data",       "shard",
      "ep",    "ep_sizes", "ep_node", "ep_rail", "expert_tp", "tp_row", "tp_column", "expert_data"};
  return kNames[static_cast<size_t>(axis)];
}

Layout::Layout(const Sizes& sizes) : sizes_(sizes) {
  for (const int each :
       {sizes.pp, sizes.dp, sizes.fsdp, sizes.cp, sizes.tp, sizes.ep, sizes.expert_tp, sizes.ep_node})
    MOEBIUS_CHECK_GE(each, 1);
  MOEBIUS_CHECK(stage_size() % (sizes.ep * sizes.expert_tp) == 0, "ep ", sizes.ep, " x expert_tp ",
                sizes.expert_tp, " does not divide a stage of ", stage_size());
  MOEBIUS_CHECK_EQ(sizes.ep % sizes.ep_node, 0, "ranks of a node");
  MOEBIUS_CHECK(sizes.tp_side == 1 || sizes.tp_side * sizes.tp_side == sizes.tp, "a grid of side ",
                sizes.tp_side, " for ", sizes.tp, " tensor ranks");
}

namespace {

// Every axis is one run of equal strides, because axes that are joined (data) are neighbours in the order.
Run run_of(const Layout::Sizes& s, Axis axis) {
  const int data = s.dp * s.fsdp * s.cp, stage = data * s.tp;
  switch (axis) {
    case Axis::world:
      return {1, stage * s.pp};
    case Axis::tp:
      return {1, s.tp};
    case Axis::cp:
      return {s.tp, s.cp};
    case Axis::fsdp:
      return {s.tp * s.cp, s.fsdp};
    case Axis::dp:
      return {s.tp * s.cp * s.fsdp, s.dp};
    case Axis::data:
      return {s.tp, data};
    case Axis::shard:
      return {s.tp, s.cp > 1 ? s.fsdp * s.cp : 1};
    case Axis::pp:
    case Axis::pp_back:
      return {stage, s.pp};
    case Axis::expert_tp:
      return {1, s.expert_tp};
    case Axis::ep:
      return {s.expert_tp, s.ep};
    case Axis::ep_sizes:
      return {s.expert_tp, s.ep_pairs ? s.ep : 1};
    case Axis::ep_node:
      return {s.expert_tp, s.ep_node};
    case Axis::ep_rail:
      return {s.expert_tp * s.ep_node, s.ep_node > 1 ? s.ep / s.ep_node : 1};
    case Axis::tp_row:
      return {1, s.tp_side};
    case Axis::tp_column:
      return {s.tp_side, s.tp_side};
    case Axis::expert_data:
      return {s.expert_tp * s.ep, stage / (s.expert_tp * s.ep)};
  }
  return {1, 1};
}

}  // namespace

int Layout::size(Axis axis) const {
  return run_of(sizes_, axis).count;
}

int Layout::index(Axis axis, int rank) const {
  const Run run = run_of(sizes_, axis);
  return rank / run.stride % run.count;
}

std::vector<int> Layout::group(Axis axis, int rank) const {
  MOEBIUS_CHECK(rank >= 0 && rank < world(), "rank ", rank, " of ", world());
  const Run run = run_of(sizes_, axis);
  const int first = rank - index(axis, rank) * run.stride;
  std::vector<int> ranks;
  for (int i = 0; i < run.count; ++i) ranks.push_back(first + i * run.stride);
  return ranks;
}

int Layout::batch_part(int rank) const {
  return index(Axis::dp, rank) * sizes_.fsdp + index(Axis::fsdp, rank);
}

namespace {

// "1, 2, 4 or 8": the numbers that divide all of `values`.
std::string common_divisors(std::initializer_list<int64_t> values) {
  int64_t common = 0;
  for (const int64_t each : values) common = std::gcd(common, each);
  std::vector<int64_t> divisors;
  for (int64_t i = 1; i <= common; ++i)
    if (common % i == 0) divisors.push_back(i);
  std::string text;
  for (size_t i = 0; i < divisors.size(); ++i)
    text += concat(i == 0 ? "" : i + 1 == divisors.size() ? " or " : ", ", divisors[i]);
  return text;
}

// Combinations whose implementation is not there yet.
void refuse_missing(const config::ParallelConfig& p) {
  const auto refuse = [](const char* field, const auto& value, const char* what, const auto& way_out) {
    throw_user_error("parallel.", field, " is ", value, ", but ", what, " is not there yet; set it to ",
                     way_out);
  };
  if (p.tp > 1 && p.tp_mode == "1d" && p.expert_tp == 1)
    refuse("expert_tp", 1, "whole experts beside split attention", 0);
  if (p.cp > 1 && p.tp > 1 && p.tp_mode == "2d")
    refuse("tp_mode", "'2d'", "a grid of tensor ranks that share sequences (parallel.cp above 1)", "'1d'");
}

// Ranks of cp share each sequence evenly, so that all have the same part of every mean over tokens.
void check_context(const config::RunConfig& config) {
  const int64_t ranks = config.parallel.cp, length = config.train.sequence;
  if (ranks == 1) return;
  if (length % ranks != 0)
    throw_user_error("train.sequence is ", length, ", which the ", ranks,
                     " ranks of parallel.cp cannot share evenly; use ",
                     length > ranks ? concat(length / ranks * ranks, " or ") : std::string(),
                     (length / ranks + 1) * ranks,
                     ", or a parallel.cp that divides it: ", common_divisors({length}));
  using Kind = config::BatchingKind;
  const Kind kind = config::parse_batching(config.data.batching, "data.batching").kind;
  if (kind != Kind::window && kind != Kind::pad && kind != Kind::pack)
    throw_user_error("data.batching is '", config.data.batching,
                     "', whose micro-batches have another length each, but the ", ranks,
                     " ranks of parallel.cp share equal parts of them; use 'window', 'pad' or 'pack', or "
                     "parallel.cp = 1");
}

// What the model's sizes allow.
void check_model(const config::ParallelConfig& p, const config::ModelConfig& m) {
  if (m.heads % p.tp != 0 || (!m.is_latent() && m.kv_heads % p.tp != 0))
    throw_user_error("parallel.tp is ", p.tp, ", which does not divide the ", m.heads,
                     " heads (model.heads) and ", m.kv_heads, " key and value heads (model.kv_heads); use ",
                     m.is_latent() ? common_divisors({m.heads}) : common_divisors({m.heads, m.kv_heads}));
  if (p.tp_mode == "1d") check_tensor_split(m, p.tp);
  if (p.ep > 1 && m.moe.experts == 0)
    throw_user_error("parallel.ep is ", p.ep,
                     ", but the model has no experts (model.moe.experts is 0); set it to 1");
  if (p.ep > 1 && m.moe.experts % p.ep != 0)
    throw_user_error("parallel.ep is ", p.ep, ", which does not divide the ", m.moe.experts,
                     " experts (model.moe.experts); use ", common_divisors({m.moe.experts}));
  if (p.pp > m.layers)
    throw_user_error("parallel.pp is ", p.pp, ", but there are only ", m.layers,
                     " layers (model.layers), and each stage needs one; use at most ", m.layers);
}

// What a pipeline asks of the model and of the exchanges beside it.
void check_pipeline(const config::RunConfig& config) {
  const config::ParallelConfig& p = config.parallel;
  const config::ModelConfig& m = config.model;
  if (p.pp == 1) {
    if (p.pp_chunks > 1 || !p.pp_layers.empty())
      throw_user_error("parallel.", p.pp_chunks > 1 ? "pp_chunks" : "pp_layers",
                       " deals layers out to the stages of a pipeline, but parallel.pp is 1; raise it, or "
                       "leave the field out");
    return;
  }
  const bool interleaves = p.pp_schedule == "interleaved";
  if (interleaves != (p.pp_chunks > 1))
    throw_user_error("parallel.pp_schedule is '", p.pp_schedule, "' and parallel.pp_chunks ", p.pp_chunks,
                     "; several groups of layers per stage go with 'interleaved', and it needs at least 2");
  const int64_t pieces = p.pp * p.pp_chunks;
  if (pieces > m.layers)
    throw_user_error("parallel.pp x parallel.pp_chunks is ", pieces, ", but there are only ", m.layers,
                     " layers (model.layers), and each group needs one; use at most ", m.layers / p.pp,
                     " groups per stage");
  if (!p.pp_layers.empty()) {
    const int64_t sum = std::accumulate(p.pp_layers.begin(), p.pp_layers.end(), int64_t{0});
    if (static_cast<int64_t>(p.pp_layers.size()) != pieces || sum != m.layers)
      throw_user_error("parallel.pp_layers has ", p.pp_layers.size(), " groups of ", sum,
                       " layers together, but parallel.pp x parallel.pp_chunks asks for ", pieces,
                       " groups and model.layers for ", m.layers, " layers");
  }
  if (m.moe.experts > 0 && m.moe.balance.aux_loss > 0 && m.moe.balance.aux_scope == "model")
    throw_user_error(
        "parallel.pp is ", p.pp,
        ", but model.moe.balance.aux_scope = 'model' balances load over all layers together, which "
        "no stage has; use 'micro_batch' or 'sequence', or parallel.pp = 1");
  if (p.zero_stage >= 2 && p.pp_schedule != "1f1b")
    throw_user_error("parallel.zero_stage is ", p.zero_stage,
                     ", which cuts gradients up after each micro-batch "
                     "of all layers, but parallel.pp_schedule = '",
                     p.pp_schedule, "' computes them in parts; use zero_stage = 1, or pp_schedule = '1f1b'");
}

// Micro-batches of a step, and stages.
void check_micro_batches(const Layout& layout, const config::RunConfig& config) {
  const int64_t stages = layout.size(Axis::pp), own = config.train.batch / layout.batch_parts();
  const int64_t count = config.train.micro_batch == 0 ? 1 : own / config.train.micro_batch;
  if (config.parallel.pp_chunks > 1 && count % stages != 0)
    throw_user_error("parallel.pp_schedule = 'interleaved' passes micro-batches in groups of parallel.pp = ",
                     stages, ", but a step has ", count, " (train.batch ", config.train.batch, " over ",
                     layout.batch_parts(), " data ranks, train.micro_batch ", config.train.micro_batch,
                     "); make their number a multiple of ", stages, ", or use pp_schedule = '1f1b'");
}

// Passes in turns.
void check_pairs(const Layout& layout, const config::RunConfig& config) {
  const config::ParallelConfig& p = config.parallel;
  if (!p.ep_pairs) return;
  const auto refuse = [](const auto&... why) {
    throw_user_error(
        "parallel.ep_pairs lets two micro-batches take turns while tokens travel to their experts, ", why...,
        "set parallel.ep_pairs = false");
  };
  if (p.ep == 1) refuse("but parallel.ep is 1, so that none do; ");
  if (p.pp > 1) refuse("but with parallel.pp = ", p.pp, " stages of a pipeline take them one by one; ");
  if (p.zero_stage == 3)
    refuse(
        "but with parallel.zero_stage = 3 the weights of a layer are gone when the first has passed it: use "
        "zero_stage 0 to 2, or ");
  const int64_t own = config.train.batch / layout.batch_parts();
  if (config.train.micro_batch == 0 || own / config.train.micro_batch < 2)
    refuse("but a step has one micro-batch per rank (train.batch ", config.train.batch, " over ",
           layout.batch_parts(), " data ranks, train.micro_batch ", config.train.micro_batch,
           "): use train.micro_batch = ", std::max<int64_t>(own / 2, 1), ", or ");
}

// Fills in dp and fsdp.
void share_out(const config::ParallelConfig& p, int64_t rest, int world, Layout::Sizes& sizes) {
  int64_t dp = p.dp, fsdp = p.fsdp;
  if (dp == 0 && fsdp == 0) {
    dp = p.zero_stage == 0 ? rest : 1;
    fsdp = rest / dp;
  } else if (dp == 0) {
    dp = rest / fsdp;
  } else if (fsdp == 0) {
    fsdp = p.zero_stage == 0 ? 1 : rest / dp;
  }
  if (dp * fsdp != rest)
    throw_user_error("parallel.dp ", p.dp == 0 ? "is open" : concat("= ", p.dp), " and parallel.fsdp ",
                     p.fsdp == 0 ? "is open" : concat("= ", p.fsdp), ", which does not make the ", rest,
                     " ranks that tp x cp x pp = ", p.tp * p.cp * p.pp, " leaves of ", world,
                     " processes; set dp x fsdp = ", rest, ", leave both at 0, or start ",
                     std::max<int64_t>(p.dp, 1) * std::max<int64_t>(p.fsdp, 1) * p.tp * p.cp * p.pp,
                     " processes");
  sizes.dp = static_cast<int>(dp);
  sizes.fsdp = static_cast<int>(fsdp);
}

void check_batch(const Layout& layout, const config::TrainSection& train) {
  const int64_t parts = layout.batch_parts();
  if (train.batch % parts != 0)
    throw_user_error("train.batch is ", train.batch, ", which ", parts,
                     " data ranks (dp x fsdp) cannot share evenly; use ", train.batch / parts * parts, " or ",
                     (train.batch / parts + 1) * parts,
                     ", or as many data ranks as divide it: ", common_divisors({train.batch}));
  if (train.micro_batch > 0 && (train.batch / parts) % train.micro_batch != 0)
    throw_user_error("train.micro_batch is ", train.micro_batch, ", which does not divide the ",
                     train.batch / parts, " sequences of a data rank (train.batch ", train.batch, " over ",
                     parts, " ranks); use ", common_divisors({train.batch / parts}),
                     ", or 0 for all at once");
}

}  // namespace

void check_grid(const config::RunConfig& config) {
  const config::ParallelConfig& p = config.parallel;
  const int64_t side = grid_side(p);
  if (side == 1) return;
  if (side * side != p.tp)
    throw_user_error("parallel.tp is ", p.tp,
                     ", but parallel.tp_mode = '2d' needs a square grid of ranks; use ",
                     (side - 1) * (side - 1), " or ", side * side);
  const auto refuse = [](const char* field, const auto& value, const char* why, const auto& way_out) {
    throw_user_error(field, " is ", value, ", but parallel.tp_mode is '2d', ", why, "; set it to ", way_out,
                     ", or use tp_mode = '1d'");
  };
  if (p.pp > 1) refuse("parallel.pp", p.pp, "whose blocks no stage hands on", 1);
  if (p.ep > 1) refuse("parallel.ep", p.ep, "which deals experts out to the rows of its grid by itself", 1);
  if (p.expert_tp != 0)
    refuse("parallel.expert_tp", p.expert_tp, "which splits experts over the columns of its grid", 0);
  if (config.quant.is_on())
    refuse("quant.scheme", "'" + config.quant.scheme + "'", "whose products are of plain floats", "'none'");
  check_grid_split(config.model, side);
}

Layout make_layout(const config::RunConfig& config, int world) {
  const config::ParallelConfig& p = config.parallel;
  check_model(p, config.model);
  check_grid(config);
  check_pipeline(config);
  check_context(config);
  const int64_t fixed = p.tp * p.cp * p.pp;
  if (fixed > world || world % fixed != 0) {
    const int64_t below = world / fixed * fixed;
    throw_user_error(world == 1 ? std::string("one process") : concat(world, " processes"),
                     " cannot be laid out with parallel.tp = ", p.tp, ", parallel.cp = ", p.cp,
                     ", parallel.pp = ", p.pp, ": these need a multiple of ", fixed, "; start ",
                     below > 0 ? concat(below, " or ", below + fixed) : concat(fixed),
                     " processes (--nproc), or set ", "tp x cp x pp to ", common_divisors({world}));
  }
  Layout::Sizes sizes;
  sizes.tp = static_cast<int>(p.tp);
  sizes.cp = static_cast<int>(p.cp);
  sizes.pp = static_cast<int>(p.pp);
  sizes.ep = static_cast<int>(p.ep);
  sizes.expert_tp = static_cast<int>(p.expert_tp == 0 ? p.tp : p.expert_tp);
  sizes.tp_side = static_cast<int>(grid_side(p));
  sizes.ep_pairs = p.ep_pairs;
  share_out(p, world / fixed, world, sizes);
  if (sizes.expert_tp != 1 && sizes.expert_tp != sizes.tp)
    throw_user_error("parallel.expert_tp is ", p.expert_tp,
                     "; experts are split as dense layers are (parallel.tp, ", p.tp,
                     ") or not at all; use 0 or 1");
  if (sizes.tp_side > 1 && config.model.moe.experts > 0) sizes.ep = sizes.expert_tp = sizes.tp_side;
  const int64_t stage = world / p.pp;
  if (stage % (p.ep * sizes.expert_tp) != 0)
    throw_user_error(
        "parallel.ep is ", p.ep, " and experts are split over ", sizes.expert_tp,
        " ranks (parallel.expert_tp), but a "
        "pipeline stage has ",
        stage, " ranks, no multiple of ", p.ep * sizes.expert_tp, "; use ep of ",
        common_divisors({stage / sizes.expert_tp, std::max<int64_t>(config.model.moe.experts, 1)}));
  if (p.ep_node_size > 0 && p.ep % p.ep_node_size != 0)
    throw_user_error("parallel.ep_node_size is ", p.ep_node_size, ", which does not divide the ", p.ep,
                     " ranks of parallel.ep; use ", common_divisors({p.ep}), ", or 0 for one level");
  // One machine, or machines of one rank, are one level.
  if (p.ep_node_size < p.ep) sizes.ep_node = std::max(1, static_cast<int>(p.ep_node_size));
  refuse_missing(p);
  if (config.optimizer.state_dtype == "int8" && (p.tp > 1 || p.ep > 1))
    throw_user_error("optimizer.state_dtype is 'int8', whose blocks of values parallel.",
                     p.tp > 1 ? "tp" : "ep", " = ", p.tp > 1 ? p.tp : p.ep,
                     " would cut apart; use 'bf16' or 'fp32'");
  const Layout layout(sizes);
  check_batch(layout, config.train);
  check_micro_batches(layout, config);
  check_pairs(layout, config);
  return layout;
}

std::string describe(const Layout& layout) {
  if (layout.world() == 1) return "one process";
  const auto product = [&](std::initializer_list<Axis> axes) {
    std::string text;
    for (const Axis axis : axes)
      if (layout.size(axis) > 1)
        text += concat(text.empty() ? "" : " x ", name_of(axis), " ", layout.size(axis));
    return text;
  };
  std::string text =
      concat(layout.world(), " processes: ", product({Axis::pp, Axis::dp, Axis::fsdp, Axis::cp, Axis::tp}));
  const Layout::Sizes& sizes = layout.sizes();
  if (sizes.tp_side > 1) text += concat(" (", sizes.tp_side, " x ", sizes.tp_side, ")");
  if (sizes.ep > 1 || sizes.expert_tp != sizes.tp)
    text += concat(" (experts of a stage: ", product({Axis::expert_data, Axis::ep, Axis::expert_tp}), ")");
  return text;
}

}  // namespace moebius::parallel
