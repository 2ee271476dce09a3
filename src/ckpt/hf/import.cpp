#include "ckpt/hf/import.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>

#include "base/check.h"
#include "ckpt/hf/finite.h"
#include "ckpt/hf/piece_copy.h"
#include "ckpt/hf/quantised.h"
#include "ckpt/tensor_bytes.h"

namespace moebius::ckpt::hf {
namespace {

// A view of the map; nobody writes through it.
at::Tensor tensor_of(const ModelFolder& folder, const ModelFolder::Entry& entry) {
  auto* const data = const_cast<std::byte*>(folder.bytes(entry).data());
  return at::from_blob(data, entry.spec.shape, at::TensorOptions().dtype(scalar_type_of(entry.spec.dtype)));
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

// Puts one tensor of the folder where it belongs, and checks it while it is in the cache.
class PieceReader {
 public:
  PieceReader(const ImportPlan& plan, const ModelFolder& folder, ImportResult& result)
      : blocks_(plan.quantisation), folder_(folder), result_(result) {}

  void will_read(const Piece& piece) const {
    const Storage storage = storage_of(piece, folder_);
    folder_.will_read(*storage.values);
  }

  void read(const Piece& piece, const at::Tensor& param) {
    const Storage storage = storage_of(piece, folder_);
    const bool finite = storage.kind == Quantisation::Kind::none ? read_plain(piece, *storage.values, param)
                                                                 : read_quantised(piece, storage, param);
    if (!finite) result_.non_finite.push_back(piece.name);
    for (const ModelFolder::Entry* const entry : {storage.values, storage.scales}) {
      if (entry == nullptr) continue;
      folder_.was_read(*entry);
      result_.num_bytes += static_cast<int64_t>(entry->num_bytes);
    }
  }

 private:
  bool read_plain(const Piece& piece, const ModelFolder::Entry& entry, const at::Tensor& param) const {
    const at::Tensor disk = tensor_of(folder_, entry);
    copy_from_disk(piece, disk, param);
    if (!all_finite(entry.spec.dtype, folder_.bytes(entry))) return false;
    // A large value may have no room in a smaller type.
    return disk.scalar_type() == param.scalar_type() ||
           at::isfinite(view_of(piece, param)).all().item<bool>();
  }

  // Expert by expert, where all are in one tensor, so that what is wide is small.
  bool read_quantised(const Piece& piece, const Storage& storage, const at::Tensor& param) const {
    const at::Tensor values = tensor_of(folder_, *storage.values),
                     scales = tensor_of(folder_, *storage.scales);
    if (storage.kind == Quantisation::Kind::fp8_blocks) {
      const at::Tensor wide = widen_fp8_blocks(values, scales, blocks_.block_rows, blocks_.block_columns);
      copy_from_disk(piece, wide, param);
      return all_finite(DType::bf16, bytes_of(wide));
    }
    const at::Tensor view = view_of(piece, param);
    bool finite = true;
    for (int64_t expert = 0; expert < values.size(0); ++expert) {
      const at::Tensor wide = widen_mxfp4(values[expert], scales[expert]);
      finite = all_finite(DType::bf16, bytes_of(wide)) && finite;
      view[expert].copy_(wide.t());
    }
    return finite;
  }

  const Quantisation& blocks_;
  const ModelFolder& folder_;
  ImportResult& result_;
};

std::map<std::string, std::vector<const Piece*>> by_param(const ImportPlan& plan) {
  std::map<std::string, std::vector<const Piece*>> pieces;
  for (const Piece& piece : plan.pieces)
    if (!piece.is_copy) pieces[piece.param].push_back(&piece);
  return pieces;
}

}  // namespace

std::vector<std::string> differing_copies(const ImportPlan& plan, const ModelFolder& folder) {
  const auto pieces = by_param(plan);
  std::vector<std::string> names;
  for (const Piece& piece : plan.pieces) {
    if (!piece.is_copy) continue;
    const auto original = pieces.find(piece.param);
    MOEBIUS_CHECK(original != pieces.end() && original->second.size() == 1, piece.name,
                  " is a copy of a part");
    const ModelFolder::Entry &copy = *storage_of(piece, folder).values,
                             &kept = *storage_of(*original->second.front(), folder).values;
    const bool same =
        copy.spec.dtype == kept.spec.dtype && std::ranges::equal(folder.bytes(copy), folder.bytes(kept));
    if (!same) names.push_back(piece.name);
  }
  return names;
}

ImportResult import_weights(const ImportPlan& plan, const ModelFolder& folder, nn::ParamTable& params) {
  ImportResult result;
  PieceReader reader(plan, folder, result);
  for (const auto& [name, pieces] : by_param(plan)) {
    nn::Param* const param = params.find(name);
    MOEBIUS_CHECK(param != nullptr, pieces.front()->name, " goes to the parameter ", name,
                  ", which is not there");
    for (const Piece* const piece : pieces) reader.read(*piece, param->value);
  }
  std::sort(result.non_finite.begin(), result.non_finite.end());
  return result;
}

ImportStream::ImportStream(const ImportPlan& plan, const ModelFolder& folder, const nn::ParamTable& params,
                           at::ScalarType dtype, std::function<void(int64_t)> progress)
    : plan_(plan), folder_(folder), progress_(std::move(progress)) {
  auto pieces = by_param(plan);
  for (const nn::Param& param : params.params()) {
    const at::ScalarType own = param.spec.is_fp32 ? at::kFloat : dtype;
    Filled& filled = filled_.emplace_back(Filled{&param, std::move(pieces[param.spec.name]), own, {}, {}});
    MOEBIUS_CHECK(!filled.pieces.empty(), "no tensor of the folder goes to the parameter ", param.spec.name);
  }
  MOEBIUS_CHECK_EQ(filled_.size(), pieces.size(), "pieces of parameters that are not there");
}

PendingGroup ImportStream::group(const std::string& name) {
  PendingGroup group{name, {}};
  for (Filled& filled : filled_) {
    const DType dtype = filled.dtype == at::kFloat ? DType::f32 : DType::bf16;
    group.tensors.push_back({{filled.param->spec.name, dtype, filled.param->spec.dims},
                             [this, &filled](const ByteSink& sink) { emit(filled, sink); },
                             [this, &filled] { prepare(filled); }});
  }
  return group;
}

void ImportStream::prepare(Filled& filled) {
  at::Tensor& buffer = buffers_[num_prepared_++ % buffers_.size()];
  const int64_t count = filled.param->spec.num_elements();
  const int64_t num_bytes = count * static_cast<int64_t>(at::elementSize(filled.dtype));
  if (!buffer.defined() || buffer.numel() < num_bytes) buffer = at::empty({num_bytes}, at::kByte);
  filled.value = buffer.narrow(0, 0, num_bytes).view(filled.dtype).view(filled.param->spec.dims);
  PieceReader reader(plan_, folder_, result_);
  const int64_t before = result_.num_bytes;
  for (const Piece* const piece : filled.pieces) reader.will_read(*piece);
  for (const Piece* const piece : filled.pieces) reader.read(*piece, filled.value);
  filled.num_bytes = result_.num_bytes - before;
}

void ImportStream::emit(Filled& filled, const ByteSink& sink) {
  sink(bytes_of(filled.value));
  filled.value.reset();
  emitted_bytes_ += filled.num_bytes;
  if (progress_) progress_(emitted_bytes_);
}

ImportResult ImportStream::result() const {
  ImportResult sorted = result_;
  std::sort(sorted.non_finite.begin(), sorted.non_finite.end());
  return sorted;
}

}  // namespace moebius::ckpt::hf
