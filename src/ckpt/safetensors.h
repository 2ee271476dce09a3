// Reader and writer of safetensors files, without torch: they work on bytes.
//
// A file is: 8 bytes little-endian header length N, N bytes of JSON ({"name": {"dtype", "shape",
// "data_offsets"}, …,
// "__metadata__": {string: string}}, padded with spaces), then the tensors' bytes without holes or overlaps.
// Format: https://github.com/huggingface/safetensors (README, "Format"); ours is the strict reading of it,
// with the limits below. Little-endian machines only (checked at compile time).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::ckpt {

enum class DType : uint8_t { f64, f32, f16, bf16, i64, i32, i16, i8, u8, boolean, f8_e4m3 };

size_t item_bytes(DType dtype);
std::string_view dtype_name(DType dtype);  // as in the file: "F64", "BF16", "BOOL"
std::optional<DType> dtype_from_name(std::string_view name);

struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;  // {} for a scalar; a dim may be 0

  // Bytes of the data; nullopt when a dim is negative or the product leaves 63 bits.
  std::optional<uint64_t> num_bytes() const;
};

// One tensor of a parsed file. `begin` counts from the start of the file.
struct TensorEntry {
  TensorSpec spec;
  uint64_t begin = 0;
  uint64_t num_bytes = 0;
};

struct SafetensorsLimits {
  uint64_t max_header_bytes = 100'000'000;  // the limit of the reference implementation
  size_t max_rank = 32;
  size_t max_name_bytes = 4096;
};

// The header of a file, checked: tensors sorted by name, and a proof that every one lies inside the file,
// that none overlap and that no byte of the data belongs to nobody.
struct SafetensorsHeader {
  std::vector<TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
  uint64_t data_begin = 0;  // offset of the first data byte in the file

  const TensorEntry* find(std::string_view name) const;  // nullptr when there is none
};

// Parses a whole file that lies in memory (usually a memory map). `file` is only for messages. Any other
// content than a well-formed file throws UserError that names the file, the tensor, what was expected and
// what was found. Memory and time are linear in the header; nothing is allocated by a size that the file
// merely claims.
SafetensorsHeader parse_safetensors(const std::string& file, std::span<const std::byte> bytes,
                                    const SafetensorsLimits& limits = {});

// What a file with these tensors looks like, before any data is known: header bytes and the order of the
// data. The same specs and metadata always give the same bytes. Data is ordered by item size (largest first,
// so that every tensor is aligned to its items), then by name; the header is padded so that the data starts
// at a multiple of 8. Names must be unique, not empty and not "__metadata__"; violations are bugs of the
// caller (CHECK).
struct SafetensorsLayout {
  std::string head;                  // length field and header
  std::vector<TensorEntry> tensors;  // in file order
  std::vector<size_t> source;        // source[i]: index into the given specs of tensors[i]
  uint64_t file_bytes = 0;
};
SafetensorsLayout layout_safetensors(std::span<const TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata);

}  // namespace moebius::ckpt
