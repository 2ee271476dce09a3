// The text fields of a batch of JSON lines, by the kernel that an FPGA would run (json_lines.cl): in
// OpenCL 1.2 on any device that has it (on a CPU through PoCL, which shows that it is right, not how fast an
// FPGA would be), or the same source compiled as C++. Lines that it leaves to the host are told; with the
// host's parser for those the result is that of the host's parser for all.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::data {

struct DecodedLines {
  enum class Status : uint8_t { blank, text, for_host };
  std::string text;                // of all lines, one after the other
  std::vector<uint32_t> line_end;  // in `text`
  std::vector<Status> status;
};

// One thread at a time.
class LineDecoder {
 public:
  virtual ~LineDecoder() = default;
  // `lines` has fewer than 2^32 bytes; `field` at most 64 (supports_field).
  virtual void decode(std::string_view lines, std::string_view field, DecodedLines& decoded) = 0;
  // What runs it, for reports.
  virtual std::string device() const = 0;
};

// Names of at most 64 bytes; JSON pointers are the host's.
bool kernel_supports_field(std::string_view field);

std::unique_ptr<LineDecoder> make_compiled_decoder();
// The first accelerator, else GPU, else CPU of all OpenCL platforms; libOpenCL is loaded at run time.
// UserError naming what is missing and how to get it.
std::unique_ptr<LineDecoder> make_opencl_decoder();
// Why make_opencl_decoder would throw; empty when it would not.
std::string why_no_opencl();

}  // namespace moebius::data
