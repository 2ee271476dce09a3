// Shapes: B sequences, S tokens each, T = B S, V vocabulary, E experts, K experts per token.
#include "train/verify.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "base/error.h"
#include "ckpt/hf/import.h"
#include "ckpt/hf/piece_copy.h"
#include "ckpt/text.h"
#include "config/dump.h"
#include "config/load.h"
#include "kernels/api/loss.h"
#include "moe/moe_feed_forward.h"
#include "train/model_files.h"
#include "train/optimizer.h"

namespace moebius::train {
namespace {

namespace hf = ckpt::hf;

constexpr double kLogits = 2e-5, kGradients = 5e-5, kLosses = 2e-6, kPerMille = 1.0;
// In bf16 a token near a border may go to another expert: logits are judged by their mean square difference.
constexpr double kBf16Losses = 1e-2, kBf16Logits = 5e-2;
constexpr double kShown = -1;
constexpr char kPredicted[] = "mtp/logits";

// The tensors of a golden file, on the CPU.
class Golden {
 public:
  explicit Golden(const std::filesystem::path& path) : path_(path.string()), map_(path) {
    for (const ckpt::TensorEntry& entry : ckpt::parse_safetensors(path_, map_.bytes()).tensors) {
      const auto type = entry.spec.dtype == ckpt::DType::i64   ? at::kLong
                        : entry.spec.dtype == ckpt::DType::f32 ? at::kFloat
                                                               : at::ScalarType::Undefined;
      if (type == at::ScalarType::Undefined)
        throw_user_error(path_, ": ", ckpt::in_quotes(entry.spec.name), " is of the type ",
                         ckpt::dtype_name(entry.spec.dtype), "; golden files hold F32 and I64");
      // The map is only read.
      auto* const data = const_cast<std::byte*>(map_.bytes().data() + entry.begin);
      tensors_[entry.spec.name] = at::from_blob(data, entry.spec.shape, at::TensorOptions().dtype(type));
    }
  }

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const at::Tensor& at(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end())
      throw_user_error(path_, " has no tensor ", ckpt::in_quotes(name), "; it is not a golden file");
    return found->second;
  }
  double scalar(const std::string& name) const { return at(name).item().toDouble(); }
  const std::map<std::string, at::Tensor>& tensors() const { return tensors_; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  MappedFile map_;
  std::map<std::string, at::Tensor> tensors_;
};

// What the routers did in one pass.
class RouterTap final : public nn::RoutingObserver {
 public:
  struct Decision {
    at::Tensor logits_TE, experts_TK, weights_TK;
  };
  void observe(int64_t, const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t) override {}
  void decided(int64_t layer, const at::Tensor& logits_TE, const at::Tensor& experts_TK,
               const at::Tensor& weights_TK) override {
    decisions[layer] = {logits_TE.detach().cpu(), experts_TK.detach().cpu().to(at::kLong),
                        weights_TK.detach().cpu()};
  }
  std::map<int64_t, Decision> decisions;
};

// Experts and their weights, largest weight first, the lower expert first among equals.
std::pair<at::Tensor, at::Tensor> in_order(const RouterTap::Decision& decision) {
  const auto [by_expert_TK, order_TK] = decision.experts_TK.sort(-1);
  const at::Tensor weights_TK = decision.weights_TK.gather(-1, order_TK);
  const auto [sorted_TK, rank_TK] = weights_TK.sort(/*stable=*/true, -1, /*descending=*/true);
  return {by_expert_TK.gather(-1, rank_TK), sorted_TK};
}

nn::TokenBatch batch_of(const at::Tensor& input_ids_BS, at::Device device) {
  const int64_t num_sequences = input_ids_BS.size(0), length = input_ids_BS.size(1);
  nn::TokenBatch batch;
  batch.tokens_T = input_ids_BS.reshape({-1}).clone().to(device);
  at::Tensor targets_BS = at::full_like(input_ids_BS, kernels::kIgnoredTarget);
  targets_BS.narrow(1, 0, length - 1).copy_(input_ids_BS.narrow(1, 1, length - 1));
  batch.targets_T = targets_BS.reshape({-1}).to(device);
  batch.positions_T = at::arange(length, at::kInt).repeat({num_sequences}).to(device);
  for (int64_t i = 0; i <= num_sequences; ++i)
    batch.documents.cu_seqlens.push_back(static_cast<int32_t>(i * length));
  batch.documents.cu_seqlens_device = at::tensor(batch.documents.cu_seqlens, at::kInt).to(device);
  batch.documents.max_length = length;
  batch.max_position = length;
  batch.sequence_of_T = at::arange(num_sequences, at::kInt).repeat_interleave(length).to(device);
  batch.num_sequences = num_sequences;
  return batch;
}

class Verifier {
 public:
  explicit Verifier(const VerifyOptions& options)
      : options_(options),
        folder_(hf::ModelFolder::open(options.model)),
        plan_(hf::plan_import(folder_)),
        golden_(options.golden) {
    const at::Tensor& input_ids_BS = golden_.at("input_ids");
    if (input_ids_BS.dim() != 2 || input_ids_BS.scalar_type() != at::kLong || input_ids_BS.size(1) < 2)
      throw_user_error(golden_.path(), ": input_ids has the shape ",
                       ckpt::shape_text(input_ids_BS.sizes().vec()),
                       "; [sequences, tokens] of I64 is expected");
    const int64_t largest = input_ids_BS.max().item<int64_t>(), smallest = input_ids_BS.min().item<int64_t>();
    if (smallest < 0 || largest >= plan_.model.vocab)
      throw_user_error(golden_.path(), " holds the token ", smallest < 0 ? smallest : largest,
                       ", but the vocabulary has ", plan_.model.vocab);
    config::RunConfig config;
    config.model = plan_.model;
    config.model.moe.balance = {};
    config.model.moe.balance.aux_loss = 0;
    if (golden_.has("aux_coef") && plan_.model.moe.experts > 0) {
      // Transformers counts K slots per token, so that its loss is K times ours.
      config.model.moe.balance.aux_scope = "model";
      config.model.moe.balance.aux_loss =
          golden_.scalar("aux_coef") * static_cast<double>(plan_.model.moe.top_k);
    }
    config.model.mtp = {};  // looked at by itself
    config.data.synthetic = true;
    config::parse_run_config(config::dump(config, config::DumpStyle::kMinimal), folder_.config().where());
    config_ = config;
    decoder_ = moe::make_decoder(config_.model);
    decoder_->params().allocate(dtype_of(options.precision), options.device);
    decoder_->params().initialise(1);
    hf::ImportPlan own = plan_;
    std::erase_if(own.pieces, [&](const hf::Piece& piece) { return !is_judged(piece); });
    hf::ImportResult imported = hf::import_weights(own, folder_, decoder_->params());
    if (!imported.non_finite.empty())
      result_.notes.push_back(
          concat("values that are not finite in ", ckpt::names_text(imported.non_finite)));
    for (const std::string& note : plan_.notes) result_.notes.push_back(note);
    result_.architecture = plan_.family->architecture;
    batch_ = batch_of(input_ids_BS, options.device);
    num_targets_ = input_ids_BS.size(0) * (input_ids_BS.size(1) - 1);
  }

  Verification run() {
    config::OptimizerConfig optimizer;
    optimizer.lr = 1e-3;
    optimizer.beta1 = 0.9;
    optimizer.beta2 = 0.95;
    optimizer.eps = 1e-8;
    optimizer.weight_decay = 0.1;
    optimizer.grad_clip = 0;
    for (nn::Param& param : decoder_->params().params()) param.spec.decays = true;
    AdamW adamw(optimizer, decoder_->params());
    constexpr int64_t kSteps = 3;
    for (int64_t step = 0; step <= kSteps; ++step) {
      const bool first = step == 0, last = step == kSteps;
      forward(first);
      compare_losses(step);
      if (last) break;
      total_.backward();
      if (first) compare_gradients();
      adamw.step(optimizer.lr, step + 1, adamw.clip(adamw.sum_of_squares()).scale);
    }
    compare_parameters();
    if (golden_.has(kPredicted)) compare_predicted();
    check_all_compared();
    return std::move(result_);
  }

 private:
  bool exact() const { return options_.precision == "fp32"; }

  void forward(bool look) {
    RouterTap tap;
    nn::ForwardOptions forward;
    forward.with_losses = config_.model.moe.balance.aux_loss > 0;
    if (look) forward.observer = &tap;
    const nn::DecoderOutput output = decoder_->forward(batch_, forward);
    loss_ = decoder_->loss(output.hidden_TD, batch_.targets_T, 1.0 / static_cast<double>(num_targets_));
    balance_loss_ = output.balance_loss;
    total_ = balance_loss_.defined() ? loss_ + balance_loss_ : loss_;
    if (!look) return;
    const at::NoGradGuard no_grad;
    const at::Tensor logits = decoder_->logits(output.hidden_TD);
    compare("logits", logits, exact() ? kLogits : kShown);
    if (!exact()) compare_mean_square("logits", logits);
    for (const auto& [layer, decision] : tap.decisions) {
      const std::string name = concat("router/", layer, "/");
      const auto [experts_TK, weights_TK] = in_order(decision);
      compare(name + "logits", decision.logits_TE, exact() ? kLogits : kShown);
      compare_experts(name + "experts", experts_TK);
      compare(name + "weights", weights_TK, exact() ? kLogits : kShown);
    }
  }

  const at::Tensor& expected(const std::string& name, int64_t num_elements) {
    const at::Tensor& tensor = golden_.at(name);
    if (tensor.numel() != num_elements)
      throw_user_error(golden_.path(), ": ", ckpt::in_quotes(name), " has the shape ",
                       ckpt::shape_text(tensor.sizes().vec()), ", which has not ", num_elements, " values");
    compared_.push_back(name);
    return tensor;
  }

  // Largest difference, as a share of the largest value.
  void compare(const std::string& name, const at::Tensor& ours, double tolerance) {
    const at::Tensor want = expected(name, ours.numel()).reshape({-1}).to(at::kDouble);
    const at::Tensor have = ours.detach().cpu().to(at::kDouble).reshape({-1});
    const double largest = want.abs().max().item<double>();
    double error = (have - want).abs().max().item<double>();
    if (largest > 0) error /= largest;
    if (!(error >= 0)) error = std::numeric_limits<double>::infinity();
    result_.comparisons.push_back({name, error, tolerance, "of largest"});
  }

  void compare_mean_square(const std::string& name, const at::Tensor& ours) {
    const at::Tensor want = golden_.at(name).reshape({-1}).to(at::kDouble);
    const at::Tensor have = ours.detach().cpu().to(at::kDouble).reshape({-1});
    double error =
        std::sqrt((have - want).square().mean().item<double>() / want.square().mean().item<double>());
    if (!(error >= 0)) error = std::numeric_limits<double>::infinity();
    result_.comparisons.push_back({name + " (root mean square)", error, kBf16Logits, "of theirs"});
  }

  void compare_scalar(const std::string& name, double ours, double want, double tolerance) {
    double error = std::abs(ours - want) / std::max(std::abs(want), 1e-30);
    if (!(error >= 0)) error = std::numeric_limits<double>::infinity();
    result_.comparisons.push_back({name, error, tolerance, "relative"});
  }

  void compare_experts(const std::string& name, const at::Tensor& ours_TK) {
    const at::Tensor want = expected(name, ours_TK.numel()).reshape({-1});
    const auto differ = static_cast<double>(ours_TK.reshape({-1}).ne(want).sum().item<int64_t>());
    result_.comparisons.push_back({name, differ, exact() ? 0 : kShown, "differ"});
  }

  void compare_losses(int64_t step) {
    const double tolerance = exact() ? kLosses : kBf16Losses;
    const double loss = loss_.item().toDouble(), total = total_.item().toDouble();
    const bool has_aux = balance_loss_.defined();
    const double aux = has_aux ? balance_loss_.item().toDouble() / golden_.scalar("aux_coef") : 0;
    if (step == 0) {
      compare_scalar("loss", loss, expected("loss", 1).item().toDouble(), tolerance);
      compare_scalar("total_loss", total, expected("total_loss", 1).item().toDouble(), tolerance);
      if (has_aux) {
        compare_scalar("aux_loss", aux, expected("aux_loss", 1).item().toDouble(),
                       exact() ? tolerance : kShown);
        compared_.push_back("aux_coef");
      }
      return;
    }
    // After steps of AdamW the difference in the parameters shows.
    const double later = exact() ? 10 * kLosses : kBf16Losses;
    const auto want = [&](const char* name) { return expected(name, 4)[step].item().toDouble(); };
    compare_scalar(concat("step_loss[", step, "]"), loss, want("step_loss"), later);
    compare_scalar(concat("step_total_loss[", step, "]"), total, want("step_total_loss"), later);
    if (has_aux)
      compare_scalar(concat("step_aux_loss[", step, "]"), aux, want("step_aux_loss"),
                     exact() ? later : kShown);
  }

  // Not of the module of multi-token prediction, which the losses of golden files do not see.
  bool is_judged(const hf::Piece& piece) {
    return !piece.is_copy && decoder_->params().find(piece.param) != nullptr;
  }

  template <class F>
  void for_each_weight(const F& f) {
    for (const hf::Piece& piece : plan_.pieces) {
      if (!is_judged(piece)) continue;
      const nn::Param* const param = decoder_->params().find(piece.param);
      if (!param->spec.is_buffer) f(piece, *param);
    }
  }

  void compare_gradients() {
    for_each_weight([&](const hf::Piece& piece, const nn::Param& param) {
      const at::Tensor& gradient = param.value.grad();
      if (!gradient.defined()) throw_user_error("no gradient reached ", piece.name, " (", piece.param, ")");
      compare("grad/" + piece.name, hf::copy_to_disk(piece, gradient), exact() ? kGradients : kShown);
    });
  }

  // Entries that moved elsewhere, per mille.
  void compare_parameters() {
    for_each_weight([&](const hf::Piece& piece, const nn::Param& param) {
      const std::string name = "after3/" + piece.name;
      const at::Tensor ours = hf::copy_to_disk(piece, param.value).cpu().to(at::kDouble).reshape({-1});
      const at::Tensor want = expected(name, ours.numel()).reshape({-1}).to(at::kDouble);
      const auto moved =
          static_cast<double>((ours - want).abs().le(1e-5).logical_not().sum().item<int64_t>());
      // A small tensor may have one such entry.
      const double allowed = std::max(kPerMille * 1e-3 * static_cast<double>(ours.numel()), 1.0);
      result_.comparisons.push_back({name, moved, exact() ? allowed : kShown, "entries off"});
    });
  }

  // What the module of multi-token prediction makes of all tokens but the last, which has no next.
  void compare_predicted() {
    if (plan_.model.mtp.depth == 0)
      throw_user_error(golden_.path(), " has ", kPredicted, ", but the model folder has no such module");
    config::ModelConfig model = config_.model;
    model.mtp = plan_.model.mtp;
    const std::unique_ptr<nn::Decoder> decoder = moe::make_decoder(model);
    decoder->params().allocate(dtype_of(options_.precision), options_.device);
    hf::import_weights(plan_, folder_, decoder->params());
    const at::NoGradGuard no_grad;
    nn::ForwardOptions forward;
    forward.with_mtp = true;
    const at::Tensor logits_TV = decoder->logits(decoder->forward(batch_, forward).mtp_hidden_TD);
    const int64_t sequences = batch_.num_sequences, length = batch_.max_position;
    compare(kPredicted, logits_TV.view({sequences, length, -1}).narrow(1, 0, length - 1),
            exact() ? kLogits : kShown);
  }

  // A golden file with tensors that nobody looked at is of another model.
  void check_all_compared() {
    std::sort(compared_.begin(), compared_.end());
    std::vector<std::string> left;
    for (const auto& [name, tensor] : golden_.tensors())
      if (name != "input_ids" && !std::binary_search(compared_.begin(), compared_.end(), name))
        left.push_back(name);
    if (!left.empty())
      throw_user_error(golden_.path(), " has tensors that this model does not: ", ckpt::names_text(left));
  }

  VerifyOptions options_;
  hf::ModelFolder folder_;
  hf::ImportPlan plan_;
  Golden golden_;
  config::RunConfig config_;
  std::unique_ptr<nn::Decoder> decoder_;
  nn::TokenBatch batch_;
  int64_t num_targets_ = 0;
  at::Tensor loss_, balance_loss_, total_;
  std::vector<std::string> compared_;
  Verification result_;
};

}  // namespace

bool Verification::passed() const {
  return std::all_of(comparisons.begin(), comparisons.end(), [](const Comparison& c) { return c.passed(); });
}

Verification verify(const VerifyOptions& options) {
  return Verifier(options).run();
}

}  // namespace moebius::train
