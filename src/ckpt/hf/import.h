// From a model folder in the Hugging Face layout to parameters: into memory, or on to a checkpoint.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ckpt/hf/plan.h"
#include "ckpt/writer.h"
#include "nn/param.h"

namespace moebius::ckpt::hf {

struct ImportResult {
  std::vector<std::string> non_finite;  // tensors on disk with NaN or infinite values
  int64_t num_bytes = 0;                // read
};

// Tensors on disk that should be copies of others (the embedding of a module of multi-token prediction) and
// are not: what they hold is lost, because a parameter is one.
std::vector<std::string> differing_copies(const ImportPlan& plan, const ModelFolder& folder);

// Fills the parameters, with conversion of dtype and of what is quantised. Parameters that no piece names
// keep their values.
ImportResult import_weights(const ImportPlan& plan, const ModelFolder& folder, nn::ParamTable& params);

// The parameters as tensors to be written, without the model in memory: each is put together while the one
// before it is written (PendingTensor::prepare), so that reading, checking and writing overlap. Two
// parameters are in memory at a time.
class ImportStream {
 public:
  // `params`: declared; every parameter must have pieces (CHECK). `dtype`: as for ParamTable::allocate.
  // `progress` is called with the bytes read of what has been handed on so far. All of them must outlive
  // this.
  ImportStream(const ImportPlan& plan, const ModelFolder& folder, const nn::ParamTable& params,
               at::ScalarType dtype, std::function<void(int64_t num_bytes)> progress = {});
  ImportStream(const ImportStream&) = delete;
  ImportStream& operator=(const ImportStream&) = delete;

  // To be written once; points into this object.
  PendingGroup group(const std::string& name);
  // Complete when the group has been written; non_finite is in the order of the folder's names.
  ImportResult result() const;

 private:
  struct Filled {
    const nn::Param* param;
    std::vector<const Piece*> pieces;
    at::ScalarType dtype;
    at::Tensor value;  // from prepare() to emit()
    int64_t num_bytes = 0;
  };
  void prepare(Filled& filled);
  void emit(Filled& filled, const ByteSink& sink);

  const ImportPlan& plan_;
  const ModelFolder& folder_;
  std::function<void(int64_t)> progress_;
  std::vector<Filled> filled_;
  // Memory that is used again and again: fresh pages would cost as much as the copies.
  std::array<at::Tensor, 2> buffers_;
  size_t num_prepared_ = 0;
  int64_t emitted_bytes_ = 0;
  ImportResult result_;
};

}  // namespace moebius::ckpt::hf
