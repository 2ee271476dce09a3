// Shapes: N outputs and K inputs of a piece.
#include "ckpt/hf/compressed_tensors.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tensor.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/integers.h"
#include "ckpt/hf/piece_copy.h"

namespace moebius::ckpt::hf {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kWeight = ".weight";
constexpr int kWordBits = 32;

std::string module_of(const std::string& name) {
  return name.substr(0, name.size() - kWeight.size());
}

void check_layout(const Piece& piece, const IntegerWeight& weight, bool is_packed) {
  const char* what = nullptr;
  if (piece.transposed || piece.halves_swapped) what = "stores it transposed";
  if (piece.shape.size() != 2 || !piece.name.ends_with(kWeight)) what = "stores all experts in one tensor";
  if (what != nullptr)
    throw_user_error(
        piece.name, ": this model type ", what,
        ", which compressed-tensors has no layout for; choose another with --family, or convert the "
        "float run");
  const int64_t k = piece.shape[1], step = weight.group > 0 ? weight.group : is_packed ? 4 : 1;
  if (k % step != 0)
    throw_user_error(piece.name, ": its ", k, " inputs are no multiple of ", step,
                     ", which compressed-tensors asks for; quantise with ",
                     weight.group > 0 ? "a --group that divides them" : "--scheme int8-w8a8");
}

// The piece with rows of another width.
Piece of_width(const Piece& piece, int64_t width) {
  Piece other = piece;
  other.shape[1] = width;
  return other;
}

// (N, K) int8 of codes in pairs.
at::Tensor single_codes(const at::Tensor& pairs) {
  return at::stack({pairs.bitwise_and(15), pairs.bitwise_right_shift(4)}, -1)
      .flatten(-2)
      .to(at::kChar)
      .sub_(8);
}

// Codes, moved to begin at 0, side by side in words.
at::Tensor packed_words(const at::Tensor& codes_NK, int bits) {
  const at::Tensor words = codes_NK.to(at::kInt).add_(1 << (bits - 1)).unflatten(1, {-1, kWordBits / bits});
  const at::Tensor shifts = at::arange(0, kWordBits, bits, words.options());
  return words.bitwise_left_shift(shifts).sum(-1, /*keepdim=*/false, at::kInt);
}

}  // namespace

std::vector<DiskTensor> compressed(const Piece& piece, const IntegerWeight& weight, bool is_packed) {
  check_layout(piece, weight, is_packed);
  const std::string module = module_of(piece.name);
  const int64_t n = piece.shape[0], k = piece.shape[1];
  const bool is_int4 = weight.group > 0;
  const int bits = is_int4 ? 4 : 8;
  // What holds the codes, and its rows.
  const Piece stored = is_int4 ? of_width(piece, ceil_div(k, int64_t{2})) : piece;
  const auto codes = [stored, is_int4, values = weight.codes] {
    const at::Tensor rows = copy_to_disk(stored, values);
    return is_int4 ? single_codes(rows) : rows;
  };
  std::vector<DiskTensor> tensors;
  if (is_packed) {
    tensors.push_back({{module + ".weight_packed", DType::i32, {n, k * bits / kWordBits}},
                       [codes, bits] { return packed_words(codes(), bits); }});
    tensors.push_back({{module + ".weight_shape", DType::i64, {2}}, [n, k] { return at::tensor({n, k}); }});
  } else {
    tensors.push_back({{piece.name, DType::i8, piece.shape}, codes});
  }
  const int64_t num_scales = is_int4 ? k / weight.group : 1;
  const Piece scale = of_width(piece, num_scales);
  tensors.push_back({{module + ".weight_scale", DType::f32, {n, num_scales}},
                     [scale, scales = is_int4 ? weight.scales : weight.scales.unsqueeze(-1)] {
                       return copy_to_disk(scale, scales);
                     }});
  return tensors;
}

std::string with_compression(const std::string& config_text, const IntegerWeights& weights,
                             std::span<const Piece> pieces) {
  const bool is_int4 = weights.group > 0;
  ordered_json arguments;
  arguments["num_bits"] = is_int4 ? 4 : 8;
  arguments["type"] = "int";
  arguments["symmetric"] = true;
  arguments["strategy"] = is_int4 ? "group" : "channel";
  if (is_int4) arguments["group_size"] = weights.group;
  arguments["dynamic"] = false;
  ordered_json group;
  group["targets"] = {"Linear"};
  group["weights"] = arguments;
  if (weights.rounds_activations)
    group["input_activations"] = {
        {"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  ordered_json json = ordered_json::parse(config_text), quantisation;
  quantisation["quant_method"] = "compressed-tensors";
  quantisation["format"] = weights.is_packed() ? "pack-quantized" : "int-quantized";
  quantisation["quantization_status"] = "compressed";
  quantisation["config_groups"]["group_0"] = group;
  quantisation["ignore"] = {"lm_head"};
  for (const Piece& piece : pieces)
    if (piece.shape.size() == 2 && piece.name.ends_with(kWeight) && module_of(piece.name) != "lm_head" &&
        piece.name.find("embed") == std::string::npos && !weights.by_param.contains(piece.param))
      quantisation["ignore"].push_back(module_of(piece.name));
  json["quantization_config"] = quantisation;
  return json.dump(2) + "\n";
}

}  // namespace moebius::ckpt::hf
