#include "ckpt/safetensors_header.h"

#include <array>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "ckpt/text.h"

namespace moebius::ckpt {
namespace {

constexpr std::string_view kMetadata = "__metadata__";

// Receives JSON events. The grammar of a header is small and of fixed depth, so every event that does not fit
// where it stands is refused at once: nesting cannot grow, and nothing is kept that is not part of the
// result.
class HeaderEvents : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderEvents(const std::string& file, const SafetensorsLimits& limits) : file_(file), limits_(limits) {}

  RawHeader take() { return std::move(header_); }

  bool start_object(size_t) override {
    switch (state_) {
      case State::begin:
        state_ = State::root;
        return true;
      case State::tensor_value:
        state_ = State::tensor;
        return true;
      case State::metadata_value:
        state_ = State::metadata;
        return true;
      default:
        refuse("an object");
    }
  }

  bool key(string_t& name) override {
    switch (state_) {
      case State::root:
        begin_entry(name);
        break;
      case State::tensor:
        begin_field(name);
        break;
      case State::metadata:
        metadata_key_ = name;
        state_ = State::metadata_text;
        break;
      default:
        refuse("a key");
    }
    return true;
  }

  bool end_object() override {
    if (state_ == State::tensor) end_tensor();
    state_ = state_ == State::root ? State::end : State::root;
    return true;
  }

  bool start_array(size_t) override {
    if (state_ == State::shape_value) {
      state_ = State::shape;
    } else if (state_ == State::offsets_value) {
      state_ = State::offsets;
    } else {
      refuse("an array");
    }
    return true;
  }

  bool end_array() override {
    if (state_ == State::offsets && offsets_.size() != 2) {
      throw_user_error(where(), ": data_offsets have ", offsets_.size(), " numbers, expected 2");
    }
    state_ = State::tensor;
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::shape) {
      if (tensor().spec.shape.size() == limits_.max_rank) {
        throw_user_error(where(), ": more than ", limits_.max_rank, " dims");
      }
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        throw_user_error(where(), ": dim ", value, " is too large to exist");
      }
      tensor().spec.shape.push_back(static_cast<int64_t>(value));
    } else if (state_ == State::offsets) {
      if (offsets_.size() == 2) throw_user_error(where(), ": data_offsets have more than 2 numbers");
      offsets_.push_back(value);
    } else {
      refuse(concat("the number ", value));
    }
    return true;
  }

  bool string(string_t& text) override {
    if (state_ == State::dtype_value) {
      const std::optional<DType> dtype = dtype_from_name(text);
      if (!dtype) {
        throw_user_error(
            where(), ": dtype ", in_quotes(text),
            " is not known; expected F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL or F8_E4M3");
      }
      tensor().spec.dtype = *dtype;
      state_ = State::tensor;
    } else if (state_ == State::metadata_text) {
      if (!header_.metadata.emplace(metadata_key_, text).second) {
        throw_user_error(file_, ": __metadata__ has the key ", in_quotes(metadata_key_), " twice");
      }
      state_ = State::metadata;
    } else {
      refuse(concat("the text ", in_quotes(text)));
    }
    return true;
  }

  bool null() override { refuse("null"); }
  bool boolean(bool value) override { refuse(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { refuse(concat("the number ", value)); }
  bool number_float(number_float_t, const string_t& text) override { refuse(concat("the number ", text)); }
  bool binary(binary_t&) override { refuse("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
    throw_user_error(file_, ": the header is not valid JSON at its byte ", position,
                     " (damaged, or not a safetensors file)");
  }

 private:
  enum class State : uint8_t {
    begin,
    root,
    tensor_value,
    tensor,
    dtype_value,
    shape_value,
    shape,
    offsets_value,
    offsets,
    metadata_value,
    metadata,
    metadata_text,
    end
  };

  RawTensor& tensor() { return header_.tensors.back(); }

  // Messages name the tensor when one is being read.
  std::string where() {
    const bool inside = state_ >= State::tensor_value && state_ <= State::offsets;
    return inside ? concat(file_, ": tensor ", in_quotes(tensor().spec.name)) : file_ + ": header";
  }

  [[noreturn]] void refuse(const std::string& found) {
    static constexpr std::array<std::string_view, 13> kExpected = {
        "an object of tensors",
        "a tensor name",
        "an object with dtype, shape and data_offsets",
        "dtype, shape or data_offsets",
        "a dtype",
        "an array of dims",
        "dims from 0",
        "an array of two offsets",
        "offsets from 0",
        "an object of texts",
        "a key",
        "a text",
        "the end"};
    throw_user_error(where(), ": found ", found, ", expected ", kExpected[static_cast<size_t>(state_)]);
  }

  void begin_entry(const std::string& name) {
    if (name == kMetadata) {
      if (has_metadata_) throw_user_error(file_, ": __metadata__ appears twice in the header");
      has_metadata_ = true;
      state_ = State::metadata_value;
      return;
    }
    if (name.empty() || name.size() > limits_.max_name_bytes) {
      throw_user_error(file_, ": tensor name ", in_quotes(name), " has ", name.size(),
                       " bytes, expected 1 to ", limits_.max_name_bytes);
    }
    header_.tensors.emplace_back().spec.name = name;
    has_dtype_ = has_shape_ = has_offsets_ = false;
    offsets_.clear();
    state_ = State::tensor_value;
  }

  void begin_field(const std::string& name) {
    bool* seen = nullptr;
    State next = State::tensor;
    if (name == "dtype") {
      seen = &has_dtype_;
      next = State::dtype_value;
    } else if (name == "shape") {
      seen = &has_shape_;
      next = State::shape_value;
    } else if (name == "data_offsets") {
      seen = &has_offsets_;
      next = State::offsets_value;
    } else {
      throw_user_error(where(), ": unknown field ", in_quotes(name),
                       ", expected dtype, shape and data_offsets");
    }
    if (*seen) throw_user_error(where(), ": field ", in_quotes(name), " appears twice");
    *seen = true;
    state_ = next;
  }

  void end_tensor() {
    if (!has_dtype_ || !has_shape_ || !has_offsets_) {
      throw_user_error(where(), ": field '", !has_dtype_ ? "dtype" : (!has_shape_ ? "shape" : "data_offsets"),
                       "' is missing");
    }
    tensor().begin = offsets_[0];
    tensor().end = offsets_[1];
  }

  const std::string& file_;
  const SafetensorsLimits& limits_;
  RawHeader header_;
  State state_ = State::begin;
  bool has_metadata_ = false, has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
  std::vector<uint64_t> offsets_;
  std::string metadata_key_;
};

}  // namespace

RawHeader parse_raw_header(const std::string& file, std::string_view json, const SafetensorsLimits& limits) {
  if (json.empty() || json.front() != '{') {
    throw_user_error(file, ": not a safetensors file: the header does not begin with '{'");
  }
  HeaderEvents events(file, limits);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);
  return events.take();
}

}  // namespace moebius::ckpt
