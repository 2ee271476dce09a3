#include "data/decode/line_decoder.h"

#include <algorithm>

#include "base/check.h"

namespace moebius::data {
namespace kernel_as_cpp {

using ulong = uint64_t;
#define __kernel static
#define __global
#define restrict __restrict
#include "data/decode/json_lines.cl"
#undef __kernel
#undef __global
#undef restrict

}  // namespace kernel_as_cpp

namespace {

class CompiledDecoder final : public LineDecoder {
 public:
  void decode(std::string_view lines, std::string_view field, DecodedLines& decoded) override {
    MOEBIUS_CHECK(kernel_supports_field(field), "field '", std::string(field), "'");
    const auto most = static_cast<size_t>(std::count(lines.begin(), lines.end(), '\n')) + 1;
    decoded.text.resize(lines.size());
    decoded.line_end.resize(most);
    decoded.status.resize(most);
    uint32_t totals[2] = {0, 0};
    kernel_as_cpp::decode_json_lines(
        reinterpret_cast<const unsigned char*>(lines.data()), static_cast<uint32_t>(lines.size()),
        reinterpret_cast<const unsigned char*>(field.data()), static_cast<uint32_t>(field.size()),
        reinterpret_cast<unsigned char*>(decoded.text.data()), decoded.line_end.data(),
        reinterpret_cast<unsigned char*>(decoded.status.data()), totals);
    decoded.line_end.resize(totals[0]);
    decoded.status.resize(totals[0]);
    decoded.text.resize(totals[1]);
  }
  std::string device() const override { return "the kernel compiled as C++"; }
};

}  // namespace

bool kernel_supports_field(std::string_view field) {
  return field.size() <= 64 && !field.starts_with('/');
}

std::unique_ptr<LineDecoder> make_compiled_decoder() {
  return std::make_unique<CompiledDecoder>();
}

}  // namespace moebius::data
