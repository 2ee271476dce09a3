#include "ckpt/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/check.h"
#include "base/error.h"
#include "ckpt/safetensors_header.h"
#include "ckpt/text.h"

namespace moebius::ckpt {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data is little-endian");

struct DTypeRow {
  DType dtype;
  std::string_view name;
  size_t bytes;
};
constexpr std::array kDTypes = {
    DTypeRow{DType::f64, "F64", 8},         DTypeRow{DType::f32, "F32", 4},
    DTypeRow{DType::f16, "F16", 2},         DTypeRow{DType::bf16, "BF16", 2},
    DTypeRow{DType::i64, "I64", 8},         DTypeRow{DType::i32, "I32", 4},
    DTypeRow{DType::i16, "I16", 2},         DTypeRow{DType::i8, "I8", 1},
    DTypeRow{DType::u8, "U8", 1},           DTypeRow{DType::boolean, "BOOL", 1},
    DTypeRow{DType::f8_e4m3, "F8_E4M3", 1},
};

const DTypeRow& row_of(DType dtype) {
  const auto index = static_cast<size_t>(dtype);
  MOEBIUS_CHECK_LT(index, kDTypes.size());
  return kDTypes[index];
}

constexpr size_t kLengthBytes = 8;
constexpr size_t kAlignment = 8;

// Sizes against claims, then holes and overlaps: data must follow data without a gap from `data_begin` to the
// end.
void check_data(const std::string& file, const RawHeader& raw, uint64_t data_bytes,
                SafetensorsHeader& header) {
  std::vector<const RawTensor*> order;
  order.reserve(raw.tensors.size());
  for (const RawTensor& tensor : raw.tensors) {
    if (tensor.end < tensor.begin) {
      throw_user_error(file, ": tensor ", in_quotes(tensor.spec.name), ": data_offsets end at ", tensor.end,
                       " before they begin at ", tensor.begin);
    }
    if (tensor.end > data_bytes) {
      throw_user_error(file, ": tensor ", in_quotes(tensor.spec.name), ": data ends at byte ", tensor.end,
                       " of the data section, but the file holds only ", data_bytes,
                       " bytes of data (truncated, or not written by a complete save)");
    }
    const std::optional<uint64_t> expected = tensor.spec.num_bytes();
    if (!expected) {
      throw_user_error(file, ": tensor ", in_quotes(tensor.spec.name), ": shape ",
                       shape_text(tensor.spec.shape), " is too large to exist");
    }
    if (*expected != tensor.end - tensor.begin) {
      throw_user_error(file, ": tensor ", in_quotes(tensor.spec.name), ": shape ",
                       shape_text(tensor.spec.shape), " of ", dtype_name(tensor.spec.dtype), " needs ",
                       *expected, " bytes, but data_offsets give ", tensor.end - tensor.begin);
    }
    order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(), [](const RawTensor* a, const RawTensor* b) {
    return std::pair(a->begin, a->end) < std::pair(b->begin, b->end);
  });
  uint64_t position = 0;
  const RawTensor* previous = nullptr;
  for (const RawTensor* tensor : order) {
    if (tensor->begin < position) {
      throw_user_error(file, ": tensors ", in_quotes(previous->spec.name), " and ",
                       in_quotes(tensor->spec.name), " overlap: the first ends at byte ", position,
                       ", the second begins at ", tensor->begin);
    }
    if (tensor->begin > position) {
      throw_user_error(file, ": bytes ", position, " to ", tensor->begin, " before tensor ",
                       in_quotes(tensor->spec.name), " belong to no tensor");
    }
    position = tensor->end;
    previous = tensor;
  }
  if (position != data_bytes) {
    throw_user_error(file, ": the tensors end at byte ", position,
                     " of the data section, but the file holds ", data_bytes, " bytes of data; the last ",
                     data_bytes - position, " belong to no tensor");
  }
  header.tensors.reserve(raw.tensors.size());
  for (const RawTensor& tensor : raw.tensors) {
    header.tensors.push_back({tensor.spec, header.data_begin + tensor.begin, tensor.end - tensor.begin});
  }
}

void append_json_string(std::string& out, std::string_view text) {
  static constexpr std::string_view kDigits = "0123456789abcdef";
  out += '"';
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (code < 0x20) {
      out += "\\u00";
      out += kDigits[code >> 4];
      out += kDigits[code & 15];
    } else {
      out += c;
    }
  }
  out += '"';
}

}  // namespace

size_t item_bytes(DType dtype) {
  return row_of(dtype).bytes;
}
std::string_view dtype_name(DType dtype) {
  return row_of(dtype).name;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return std::nullopt;
}

std::optional<uint64_t> TensorSpec::num_bytes() const {
  // Zero dims count as one while looking for overflow: the strides of such a tensor must be representable
  // too.
  int64_t bytes = static_cast<int64_t>(item_bytes(dtype));
  bool empty = false;
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    empty = empty || dim == 0;
    if (__builtin_mul_overflow(bytes, std::max<int64_t>(dim, 1), &bytes)) return std::nullopt;
  }
  return empty ? 0 : static_cast<uint64_t>(bytes);
}

const TensorEntry* SafetensorsHeader::find(std::string_view name) const {
  const auto found =
      std::lower_bound(tensors.begin(), tensors.end(), name,
                       [](const TensorEntry& t, std::string_view n) { return t.spec.name < n; });
  return found != tensors.end() && found->spec.name == name ? &*found : nullptr;
}

SafetensorsHeader parse_safetensors(const std::string& file, std::span<const std::byte> bytes,
                                    const SafetensorsLimits& limits) {
  if (bytes.size() < kLengthBytes + 2) {
    throw_user_error(file, ": not a safetensors file: ", bytes.size(), " bytes, expected at least ",
                     kLengthBytes + 2, " (header length and header)");
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes < 2 || header_bytes > limits.max_header_bytes) {
    throw_user_error(file, ": not a safetensors file: header length ", header_bytes, ", expected 2 to ",
                     limits.max_header_bytes);
  }
  if (header_bytes > bytes.size() - kLengthBytes) {
    throw_user_error(file, ": truncated: header of ", header_bytes, " bytes announced, but only ",
                     bytes.size() - kLengthBytes, " bytes follow");
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, header_bytes);
  RawHeader raw = parse_raw_header(file, text, limits);
  std::sort(raw.tensors.begin(), raw.tensors.end(),
            [](const RawTensor& a, const RawTensor& b) { return a.spec.name < b.spec.name; });
  for (size_t i = 1; i < raw.tensors.size(); ++i) {
    if (raw.tensors[i - 1].spec.name == raw.tensors[i].spec.name) {
      throw_user_error(file, ": tensor ", in_quotes(raw.tensors[i].spec.name),
                       " appears twice in the header");
    }
  }
  SafetensorsHeader header;
  header.metadata = std::move(raw.metadata);
  header.data_begin = kLengthBytes + header_bytes;
  check_data(file, raw, bytes.size() - header.data_begin, header);
  return header;
}

SafetensorsLayout layout_safetensors(std::span<const TensorSpec> specs,
                                     const std::map<std::string, std::string>& metadata) {
  SafetensorsLayout layout;
  layout.source.resize(specs.size());
  std::iota(layout.source.begin(), layout.source.end(), size_t{0});
  std::sort(layout.source.begin(), layout.source.end(), [&](size_t a, size_t b) {
    const size_t bytes_a = item_bytes(specs[a].dtype), bytes_b = item_bytes(specs[b].dtype);
    return bytes_a != bytes_b ? bytes_a > bytes_b : specs[a].name < specs[b].name;
  });

  std::string json = "{";
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (json.back() != '{') json += ',';
      append_json_string(json, key);
      json += ':';
      append_json_string(json, value);
    }
    json += '}';
  }
  uint64_t position = 0;
  for (const size_t i : layout.source) {
    const TensorSpec& spec = specs[i];
    const std::optional<uint64_t> num_bytes = spec.num_bytes();
    MOEBIUS_CHECK(num_bytes.has_value(), "tensor ", spec.name, " has shape ", shape_text(spec.shape));
    MOEBIUS_CHECK(!spec.name.empty() && spec.name != "__metadata__", "tensor name ", in_quotes(spec.name));
    if (json.size() > 1) json += ',';
    append_json_string(json, spec.name);
    json += concat(":{\"dtype\":\"", dtype_name(spec.dtype), "\",\"shape\":[");
    for (size_t d = 0; d < spec.shape.size(); ++d)
      json += (d == 0 ? "" : ",") + std::to_string(spec.shape[d]);
    json += concat("],\"data_offsets\":[", position, ",", position + *num_bytes, "]}");
    layout.tensors.push_back({spec, position, *num_bytes});
    position += *num_bytes;
  }
  json += '}';
  json.resize((json.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  MOEBIUS_CHECK_LE(json.size(), SafetensorsLimits{}.max_header_bytes);

  std::vector<std::string_view> names;
  for (const TensorSpec& spec : specs) names.push_back(spec.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  MOEBIUS_CHECK(twice == names.end(), "two tensors are named ", in_quotes(*twice));

  const uint64_t header_bytes = json.size();
  layout.head.resize(kLengthBytes);
  std::memcpy(layout.head.data(), &header_bytes, kLengthBytes);
  layout.head += json;
  for (TensorEntry& tensor : layout.tensors) tensor.begin += layout.head.size();
  layout.file_bytes = layout.head.size() + position;
  return layout;
}

}  // namespace moebius::ckpt
