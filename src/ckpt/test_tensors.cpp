#include "ckpt/test_tensors.h"

#include <ATen/ATen.h>

#include "base/file.h"
#include "ckpt/tensor_bytes.h"

namespace moebius::ckpt {
namespace {

// Random bytes, so that NaN payloads, denormals and negative zeros occur; BOOL gets 0 and 1.
at::Tensor random_tensor(at::ScalarType type, at::IntArrayRef shape, at::Generator& generator) {
  const at::Tensor tensor = at::empty(shape, at::TensorOptions().dtype(type));
  if (type == at::kBool) return tensor.random_(0, 2, generator);
  if (tensor.numel() > 0) tensor.flatten().view(at::kByte).random_(0, 256, generator);
  return tensor;
}

}  // namespace

std::vector<TensorGroup> example_groups(uint64_t seed) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU).clone();
  generator.set_current_seed(seed);
  std::vector<TensorGroup> groups = {{"model", {}}, {"optimizer", {}}};
  for (const at::ScalarType type : {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt,
                                    at::kShort, at::kChar, at::kByte, at::kBool}) {
    const std::string name = at::toString(type);
    groups[0].tensors.push_back({name + ".matrix", random_tensor(type, {3, 5}, generator)});
    groups[0].tensors.push_back({name + ".scalar", random_tensor(type, {}, generator)});
    groups[0].tensors.push_back({name + ".empty", random_tensor(type, {0, 4}, generator)});
  }
  for (const char* name : {"w.m", "w.v", "w.master"}) {
    groups[1].tensors.push_back({name, random_tensor(at::kFloat, {64, 33}, generator)});
  }
  return groups;
}

std::vector<TensorGroup> zeros_like(const std::vector<TensorGroup>& groups) {
  std::vector<TensorGroup> zeros = groups;
  for (TensorGroup& group : zeros) {
    for (NamedTensor& named : group.tensors) named.tensor = at::zeros_like(named.tensor);
  }
  return zeros;
}

std::string first_difference(const std::vector<TensorGroup>& a, const std::vector<TensorGroup>& b) {
  for (size_t g = 0; g < a.size(); ++g) {
    for (size_t i = 0; i < a[g].tensors.size(); ++i) {
      if (!at::equal(flat_bytes(a[g].tensors[i].tensor), flat_bytes(b[g].tensors[i].tensor)))
        return a[g].tensors[i].name;
    }
  }
  return "";
}

std::map<std::string, std::string> contents_of(const std::filesystem::path& folder) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      contents[std::filesystem::relative(entry.path(), folder).string()] = read_file(entry.path());
    }
  }
  return contents;
}

}  // namespace moebius::ckpt
