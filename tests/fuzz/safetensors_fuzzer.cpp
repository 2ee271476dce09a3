// The reader of safetensors headers: whatever the bytes, a consistent header or UserError.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "base/error.h"
#include "ckpt/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moebius::ckpt;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  try {
    const SafetensorsHeader header = parse_safetensors("f", bytes);
    uint64_t sum = header.data_begin;
    for (const TensorEntry& tensor : header.tensors) {
      if (tensor.begin < header.data_begin || tensor.begin > size || tensor.num_bytes > size - tensor.begin)
        std::abort();
      if (tensor.num_bytes != tensor.spec.num_bytes()) std::abort();
      if (header.find(tensor.spec.name) != &tensor) std::abort();
      sum += tensor.num_bytes;
    }
    if (sum != size) std::abort();
  } catch (const moebius::UserError&) {
  }
  return 0;
}
