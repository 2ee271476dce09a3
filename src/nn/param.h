// Parameters and their declarations. A layer owns handles to its parameters and computes with them;
// everything else (initialisation, optimizer, checkpoints, memory plans, parallel layouts) works from the
// table of declarations and never edits a layer.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "nn/param_slice.h"

namespace moebius::quant {
class Product;
}

namespace moebius::nn {

enum class ParamClass : uint8_t { expert, dense, embedding, router, norm };
const char* name_of(ParamClass klass);

// Which dim each mesh axis splits; -1: the axis replicates the parameter.
struct AxisMap {
  int ep = -1;  // expert axis
  int tp = -1;  // tensor axis
  // On a grid of tensor ranks alone: the dim that its other axis splits (of weights the model's width), and
  // the dim that the tensor axis splits because it lies as the residual stream does.
  int grid = -1;
  int stream = -1;
};

struct Init {
  enum class Kind : uint8_t { normal, ones, zeros };
  Kind kind = Kind::normal;
  double std = 0;

  static Init normal(double std) { return {Kind::normal, std}; }
  static Init ones() { return {Kind::ones, 0}; }
  static Init zeros() { return {Kind::zeros, 0}; }
};

// Whether a process counts in sums over all processes what it holds of a parameter: of those that hold the
// same elements along an axis that splits parameters the first does.
bool counts_once(const AxisMap& sharding, const Shards& shards);

// What a layer says about one parameter before any memory exists.
struct ParamSpec {
  std::string name;           // "layers.3.moe.gate_up"
  std::vector<int64_t> dims;  // logical sizes; never sharded sizes
  ParamClass klass = ParamClass::dense;
  AxisMap sharding = {};
  // Where the dim that tp splits is made of several things of one kind (query, key and value rows): their
  // sizes, which add up to the dim; each is split by itself. Empty: one thing.
  std::vector<int64_t> tp_parts = {};
  Init init = {};
  bool decays = true;      // weight decay applies
  bool is_fp32 = false;    // stays fp32 whatever the model's precision (router)
  bool is_buffer = false;  // saved with the model, but has no gradient (selection bias)
  // A weight that layers multiply by through nn/linear.h or as experts, so that it may be quantised.
  bool is_product = false;

  int64_t num_elements() const;
};

struct Param {
  ParamSpec spec;
  at::Tensor value;  // undefined until ParamTable::allocate; a leaf that requires grad unless it is a buffer
  // What `value` holds of the declared dims: the whole, unless ParamTable::split said otherwise.
  ParamSlice slice = {};
  // How products with the weight are computed; null: as plain floats.
  std::shared_ptr<const quant::Product> product = {};

  std::vector<int64_t> local_dims() const { return slice.local_dims(spec.dims); }
  int64_t num_local_elements() const;
};

// The value of a parameter that a layer may lack; undefined then.
inline at::Tensor value_of(const Param* param) {
  return param != nullptr ? param->value : at::Tensor();
}

// Owner of all parameters of a model, in the order of declaration. Handles stay valid while the table lives.
class ParamTable {
 public:
  ParamTable() = default;
  ParamTable(const ParamTable&) = delete;
  ParamTable& operator=(const ParamTable&) = delete;

  // Names must be unique (CHECK).
  Param& declare(ParamSpec spec);

  // This process holds only its slices of the parameters whose declaration names a dim for an axis; before
  // allocate(). Declarations and num_elements() keep the logical sizes.
  void split(const Shards& shards);
  const Shards& shards() const { return shards_; }

  // Gives every parameter its memory: `dtype` (fp32 or bf16), or fp32 where the declaration says so. Values
  // are undefined until initialise() or a checkpoint fills them.
  void allocate(at::ScalarType dtype, at::Device device);

  // Fills the parameters as declared. Each value is a pure function of (seed, name, index): it depends
  // neither on the device nor on the number of threads nor on the other parameters; a slice has what the
  // whole has there.
  void initialise(uint64_t seed);

  std::deque<Param>& params() { return params_; }
  const std::deque<Param>& params() const { return params_; }
  Param* find(const std::string& name);

  // Elements with a gradient; those of one class; those that this process holds.
  int64_t num_elements() const;
  int64_t num_elements(ParamClass klass) const;
  int64_t num_local_elements() const;

 private:
  Shards shards_;
  std::deque<Param> params_;
};

}  // namespace moebius::nn
