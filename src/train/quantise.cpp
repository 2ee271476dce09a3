#include "train/quantise.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/distance.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/integers.h"
#include "ckpt/tensor_bytes.h"
#include "ckpt/text.h"
#include "data/prepare.h"
#include "data/tokenizer.h"
#include "kernels/api/int4_gemm.h"
#include "ops/int4_linear.h"
#include "quant/format.h"
#include "quant/int4_product.h"
#include "quant/int8_product.h"
#include "quant/watched_product.h"
#include "train/evaluate.h"
#include "train/model_files.h"
#include "train/quantise_spool.h"
#include "train/quantised_model.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kLeastCalibrationTokens = 512, kMostCalibrationTokens = 32768;
// Rows that are looked at together.
constexpr int64_t kPieceElements = 1 << 22;
constexpr int64_t kQuantiseGroupStep = 64, kQuantiseMostGroup = 4096;  // of the kernels with int4 weights

quant::Scheme scheme_named(const std::string& name) {
  if (const auto scheme = quant::scheme_of(name)) return *scheme;
  std::string all;
  for (const std::string& each : quant::scheme_names()) all += (all.empty() ? "" : ", ") + each;
  const auto nearest = nearest_name(name, quant::scheme_names());
  throw_user_error("--scheme is '", name, "', which is unknown",
                   nearest ? "; did you mean '" + *nearest + "'?" : ";", " There are ", all);
}

// A weight as rows of its last dim.
at::Tensor rows_of(const at::Tensor& value) {
  return value.reshape({-1, value.size(-1)});
}

void for_each_piece(const at::Tensor& rows,
                    const std::function<void(int64_t first, const at::Tensor&)>& body) {
  const int64_t step = std::max<int64_t>(1, kPieceElements / std::max<int64_t>(rows.size(1), 1));
  for (int64_t r = 0; r < rows.size(0); r += step)
    body(r, rows.narrow(0, r, std::min(step, rows.size(0) - r)));
}

struct Format {
  quant::Scheme scheme;
  int64_t group;
  bool is_int4() const { return scheme == quant::Scheme::int4_w4a16; }
};

// Rows of a weight as they are stored.
struct CodedPiece {
  at::Tensor codes;   // int8 (N, K), or uint8 (N, ceil(K / 2))
  at::Tensor scales;  // fp32 (N, 1) or (N, groups)
  at::Tensor values;  // what they stand for, fp32 (N, K)
  at::Tensor limits;  // fp32, broadcasts to (N, K): values beyond are clipped
};

CodedPiece coded(const at::Tensor& values, const Format& format) {
  if (!format.is_int4()) {
    const quant::Quantised q = quant::quantise(values, quant::Granularity::per_row);
    return {q.codes, q.scales, quant::dequantise(q.codes, q.scales), q.scales * (kernels::kInt8Levels + 0.5)};
  }
  const quant::Int4Codes q = quant::int4_codes(values, format.group);
  const int64_t k = values.size(1);
  const double edge = kernels::levels_of_bits(kernels::kInt4Bits) + 0.5;
  return {q.codes, q.scales, ops::int4_values(q.codes, q.scales, k, format.group, at::kFloat),
          (q.scales * edge).repeat_interleave(format.group, 1).narrow(1, 0, k)};
}

// Hands over a weight's codes, row after row, and then its scales, and fills in what they do to it.
void code_weight(const nn::Param& param, const Format& format, QuantisedWeight& report,
                 const ckpt::ByteSink& sink) {
  const at::Tensor rows = rows_of(param.value);
  std::vector<at::Tensor> scales;
  double square = 0, error_square = 0, smallest = INFINITY;
  for_each_piece(rows, [&](int64_t first, const at::Tensor& piece) {
    const at::Tensor values = piece.to(at::kFloat);
    const at::Tensor ranges = quant::range_of(values, quant::Granularity::per_row);
    if (!ranges.isfinite().all().item<bool>())
      throw_user_error(param.spec.name, " has values that are not finite, first in row ",
                       first + ranges.flatten().isfinite().logical_not().nonzero()[0].item<int64_t>(),
                       "; a range of such a row has no scale. Quantise an earlier checkpoint");
    const CodedPiece q = coded(values, format);
    ckpt::emit_bytes(q.codes, sink);
    scales.push_back(q.scales);
    square += values.square().sum(at::kDouble).item<double>();
    error_square += (q.values - values).square().sum(at::kDouble).item<double>();
    report.range = std::max(report.range, ranges.max().item<double>());
    smallest = std::min(smallest, ranges.min().item<double>());
    const at::Tensor rms = values.square().mean(-1, /*keepdim=*/true).sqrt();
    report.peak_ratio = std::max(report.peak_ratio, (ranges / rms.clamp_min(1e-30)).max().item<double>());
    report.clipped_share += values.abs().gt(q.limits).sum().item<double>();
  });
  for (const at::Tensor& piece : scales) ckpt::emit_bytes(piece, sink);
  const double count = static_cast<double>(std::max<int64_t>(param.spec.num_elements(), 1));
  report.clipped_share /= count;
  report.relative_error = square > 0 ? std::sqrt(error_square / square) : 0;
  report.smallest_range = rows.size(0) > 0 ? smallest : 0;
  const double far = 6 * std::sqrt(square / count);
  for_each_piece(rows, [&](int64_t, const at::Tensor& piece) {
    report.outlier_share += piece.abs().to(at::kFloat).gt(far).sum().item<double>();
  });
  report.outlier_share /= count;
}

ckpt::PendingTensor pending(const std::string& name, const at::Tensor& value) {
  return {ckpt::spec_of(name, value), [value](const ckpt::ByteSink& sink) { ckpt::emit_bytes(value, sink); }};
}

// Codes and scales in a checkpoint.
struct StoredSpecs {
  ckpt::TensorSpec codes, scales;
};

StoredSpecs stored_specs(const nn::ParamSpec& spec, const Format& format) {
  StoredSpecs specs{{spec.name, ckpt::DType::i8, spec.dims},
                    {scale_name(spec.name), ckpt::DType::f32, spec.dims}};
  specs.scales.shape.pop_back();
  if (!format.is_int4()) return specs;
  specs.codes.dtype = ckpt::DType::u8;
  specs.codes.shape.back() = ceil_div(spec.dims.back(), int64_t{2});
  specs.scales.shape.push_back(ceil_div(spec.dims.back(), format.group));
  return specs;
}

void write_report(const QuantiseResult& result, const fs::path& file) {
  nlohmann::ordered_json json;
  json["scheme"] = result.scheme;
  json["step"] = result.step;
  json["bytes_before"] = result.bytes_before;
  json["bytes_after"] = result.bytes_after;
  json["weight_bytes_before"] = result.weight_bytes_before;
  json["weight_bytes_after"] = result.weight_bytes_after;
  json["left_float"] = result.left_float;
  if (result.calibration_tokens > 0) {
    json["calibration_tokens"] = result.calibration_tokens;
    json["calibration_loss"] = result.calibration_loss;
  }
  json["weights"] = nlohmann::ordered_json::array();
  for (const QuantisedWeight& weight : result.weights)
    json["weights"].push_back(nlohmann::ordered_json::parse(to_json(weight)));
  write_file_atomic(file, json.dump(2) + "\n");
}

// The float model reads the calibration text; what its weights were multiplied with, by name.
std::map<std::string, quant::InputStatistics> watch_inputs(const QuantiseOptions& options,
                                                           QuantiseResult& result) {
  const LoadedModel loaded = load_model(options.from, at::kCPU);
  if (!loaded.tokenizer)
    throw_user_error(
        "--calibrate: ", options.from.string(),
        " was trained on synthetic tokens and has no tokenizer to read a text with; leave it out");
  std::map<std::string, std::shared_ptr<const quant::WatchedProduct>> watched;
  for (nn::Param& param : loaded.decoder->params().params()) {
    if (!is_quantisable(param.spec)) continue;
    auto product = std::make_shared<const quant::WatchedProduct>(param.spec.name);
    watched[param.spec.name] = product;
    param.product = product;
  }
  constexpr int64_t kBatch = 4;
  const int64_t sequence = loaded.config.train.sequence;
  data::ValidationSet set(data::open_for_evaluation(options.calibration, loaded.tokenizer,
                                                    loaded.run_dir().parent_path() / "corpora"),
                          loaded.tokenizer, loaded.config.model.vocab, sequence, kBatch);
  const Evaluation evaluation =
      evaluate(*loaded.decoder, set, std::max<int64_t>(1, kMostCalibrationTokens / (kBatch * sequence)));
  if (evaluation.num_targets < kLeastCalibrationTokens)
    throw_user_error("--calibrate: ", options.calibration.string(), " has ", evaluation.num_targets,
                     " tokens to predict, too few for ranges that mean something; at least ",
                     kLeastCalibrationTokens, " are needed: name a longer text");
  result.calibration_tokens = evaluation.num_targets;
  result.calibration_loss = evaluation.loss;
  std::map<std::string, quant::InputStatistics> statistics;
  for (const auto& [name, product] : watched) statistics[name] = product->statistics();
  return statistics;
}

// All that codes and reports depend on.
std::string identity_of(const QuantiseOptions& options, const ckpt::Checkpoint& checkpoint,
                        const Format& format) {
  nlohmann::ordered_json json;
  json["format"] = 1;
  json["checkpoint"] = checkpoint.path().string();
  json["manifest"] = hash_hex(hash_file(checkpoint.path() / ckpt::kManifestFile));
  json["scheme"] = quant::name_of(format.scheme);
  if (format.is_int4()) json["group"] = format.group;
  if (!options.calibration.empty()) json["calibration"] = hash_hex(hash_file(options.calibration));
  return json.dump() + "\n";
}

// Tokenizer and what came with an imported model: the new run needs nothing of the old one.
void copy_companions(const LoadedModel& loaded, const fs::path& to) {
  const fs::path run_dir = loaded.run_dir();
  for (const fs::path& file : kept_tokenizer(run_dir, loaded.config.data.tokenizer))
    write_file_atomic(to / file.filename(), read_file(file));
  keep_carried(run_dir, to);
}

}  // namespace

QuantiseResult quantise_run(const QuantiseOptions& options) {
  QuantiseResult result;
  const Format format{scheme_named(options.scheme), options.group};
  result.scheme = quant::name_of(format.scheme);
  if (format.is_int4() && (options.group < kQuantiseGroupStep || options.group % kQuantiseGroupStep != 0 ||
                           options.group > kQuantiseMostGroup))
    throw_user_error("--group is ", options.group, ", but the kernels need a multiple of ",
                     kQuantiseGroupStep, " up to ", kQuantiseMostGroup, ", such as 128");
  const ckpt::Checkpoint checkpoint = ckpt::open_run_or_checkpoint(options.from);
  refuse_quantised(checkpoint, "is quantised already", "quantise the float checkpoint that it was made from");
  NewFolder out(options.to);
  QuantiseSpool spool(options.to, identity_of(options, checkpoint, format));
  const LoadedModel loaded = map_model(checkpoint);
  result.step = loaded.step;
  std::map<std::string, quant::InputStatistics> inputs;
  if (!options.calibration.empty()) inputs = watch_inputs(options, result);

  std::vector<ckpt::PendingGroup> groups{{kModelGroup, {}}};
  std::vector<ckpt::PendingTensor>& tensors = groups.front().tensors;
  const auto& params = loaded.decoder->params().params();
  const auto count = static_cast<int64_t>(params.size());
  int64_t index = 0;
  for (const nn::Param& param : params) {
    if (options.progress) options.progress(param.spec.name, index++, count);
    const auto num_bytes = static_cast<int64_t>(param.value.nbytes());
    result.bytes_before += num_bytes;
    if (!is_quantisable(param.spec)) {
      if (param.spec.is_product) result.left_float.push_back(param.spec.name);
      tensors.push_back(pending(param.spec.name, param.value));
      result.bytes_after += num_bytes;
      continue;
    }
    QuantisedWeight& report = result.weights.emplace_back();
    if (spool.holds(param.spec.name)) {
      report = spool.report(param.spec.name);
      ++result.num_resumed;
    } else {
      report.name = param.spec.name;
      report.dims = param.spec.dims;
      if (const auto at = inputs.find(report.name); at != inputs.end()) {
        report.input_rows = at->second.num_rows;
        report.input_range = at->second.range;
        report.input_peak_ratio = at->second.peak_ratio;
        report.input_error = at->second.relative_error();
      }
      // The report is filled in while the codes are written.
      spool.keep(report, [&](const ckpt::ByteSink& sink) { code_weight(param, format, report, sink); });
    }
    const StoredSpecs specs = stored_specs(param.spec, format);
    const auto code_bytes = static_cast<int64_t>(specs.codes.num_bytes().value());
    tensors.push_back(spool.pending(param.spec.name, specs.codes, 0));
    tensors.push_back(spool.pending(param.spec.name, specs.scales, code_bytes));
    const int64_t after = code_bytes + static_cast<int64_t>(specs.scales.num_bytes().value());
    result.weight_bytes_before += num_bytes;
    result.weight_bytes_after += after;
    result.bytes_after += after;
  }

  ckpt::CheckpointMeta meta;
  meta.step = loaded.step;
  meta.config = checkpoint.config();
  meta.state_json = state_with_scheme(checkpoint.state_json(), format.scheme, format.group);
  ckpt::write_checkpoint(out.path(), meta, groups, {});
  write_file_atomic(out.path() / "config.toml", checkpoint.config());
  copy_companions(loaded, out.path());
  write_report(result, out.path() / "quantisation.json");
  out.publish();
  spool.remove();
  return result;
}

}  // namespace moebius::train
