#include <algorithm>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "data/decode/kernel_source.h"
#include "data/decode/line_decoder.h"
#include "data/decode/opencl.h"

namespace moebius::data {
namespace {

using opencl::Api;
using opencl::Handle;

constexpr const char* kOpenClWayOut =
    "; install an OpenCL device (apt install pocl-opencl-icd for the CPU), or set data.decode.device = "
    "\"cpu\"";

struct Device {
  const Api* api = nullptr;
  Handle id = nullptr;
  std::string problem;
};

Device find_device() {
  Device device;
  device.api = opencl::load(device.problem);
  if (device.api == nullptr) return device;
  uint32_t num_platforms = 0;
  device.api->clGetPlatformIDs(0, nullptr, &num_platforms);
  std::vector<Handle> platforms(num_platforms);
  if (num_platforms > 0) device.api->clGetPlatformIDs(num_platforms, platforms.data(), nullptr);
  for (const uint64_t type :
       {opencl::kDeviceTypeAccelerator, opencl::kDeviceTypeGpu, opencl::kDeviceTypeCpu}) {
    for (const Handle platform : platforms) {
      uint32_t num_devices = 0;
      if (device.api->clGetDeviceIDs(platform, type, 1, &device.id, &num_devices) == opencl::kSuccess &&
          num_devices > 0) {
        return device;
      }
    }
  }
  device.id = nullptr;
  device.problem = concat("none of the ", num_platforms, " OpenCL platforms has a device");
  return device;
}

void check_call(int32_t status, const char* call) {
  if (status != opencl::kSuccess)
    throw_user_error("OpenCL: ", call, " failed with code ", status, "; set data.decode.device = \"cpu\"");
}

class OpenClDecoder final : public LineDecoder {
 public:
  explicit OpenClDecoder(const Device& device) : api_(*device.api), device_(device.id) {
    try {
      build();
    } catch (...) {
      release();
      throw;
    }
  }
  ~OpenClDecoder() override { release(); }

  std::string device() const override {
    std::vector<char> name(256);
    api_.clGetDeviceInfo(device_, opencl::kDeviceName, name.size() - 1, name.data(), nullptr);
    return name.data();
  }

  void decode(std::string_view lines, std::string_view field, DecodedLines& decoded) override {
    MOEBIUS_CHECK(kernel_supports_field(field), "field '", std::string(field), "'");
    const auto most = static_cast<size_t>(std::count(lines.begin(), lines.end(), '\n')) + 1;
    make_room(lines.size(), most);
    write(kText, lines.data(), lines.size());
    write(kField, field.data(), field.size());
    const auto size = static_cast<uint32_t>(lines.size()), field_size = static_cast<uint32_t>(field.size());
    uint32_t argument = 0;
    set(argument++, buffers_[kText]);
    set(argument++, size);
    set(argument++, buffers_[kField]);
    set(argument++, field_size);
    for (const size_t i : {kOut, kLineEnd, kStatus, kTotals}) set(argument++, buffers_[i]);
    check_call(api_.clEnqueueTask(queue_, kernel_, 0, nullptr, nullptr), "clEnqueueTask");
    uint32_t totals[2] = {0, 0};
    read(kTotals, totals, sizeof totals);
    MOEBIUS_CHECK(totals[0] <= most && totals[1] <= lines.size(), totals[0], " lines, ", totals[1], " bytes");
    decoded.line_end.resize(totals[0]);
    decoded.status.resize(totals[0]);
    decoded.text.resize(totals[1]);
    read(kLineEnd, decoded.line_end.data(), totals[0] * sizeof(uint32_t));
    read(kStatus, decoded.status.data(), totals[0]);
    read(kOut, decoded.text.data(), totals[1]);
  }

 private:
  enum Buffer : size_t { kText, kField, kOut, kLineEnd, kStatus, kTotals, kNumBuffers };

  void build() {
    int32_t status = 0;
    context_ = api_.clCreateContext(nullptr, 1, &device_, nullptr, nullptr, &status);
    check_call(status, "clCreateContext");
    queue_ = api_.clCreateCommandQueue(context_, device_, 0, &status);
    check_call(status, "clCreateCommandQueue");
    const char* source = kJsonLinesSource;
    program_ = api_.clCreateProgramWithSource(context_, 1, &source, nullptr, &status);
    check_call(status, "clCreateProgramWithSource");
    if (api_.clBuildProgram(program_, 1, &device_, "-cl-std=CL1.2", nullptr, nullptr) != opencl::kSuccess) {
      std::vector<char> log(4096);
      api_.clGetProgramBuildInfo(program_, device_, opencl::kProgramBuildLog, log.size() - 1, log.data(),
                                 nullptr);
      throw_user_error("OpenCL: the kernel does not build on ", device(), ": ", log.data(),
                       "; set data.decode.device = \"cpu\"");
    }
    kernel_ = api_.clCreateKernel(program_, "decode_json_lines", &status);
    check_call(status, "clCreateKernel");
  }

  void release() {
    for (const Handle buffer : buffers_)
      if (buffer != nullptr) api_.clReleaseMemObject(buffer);
    if (kernel_ != nullptr) api_.clReleaseKernel(kernel_);
    if (program_ != nullptr) api_.clReleaseProgram(program_);
    if (queue_ != nullptr) api_.clReleaseCommandQueue(queue_);
    if (context_ != nullptr) api_.clReleaseContext(context_);
  }

  void make_room(size_t num_bytes, size_t num_lines) {
    const size_t needed[kNumBuffers] = {
        num_bytes, 64, num_bytes, num_lines * sizeof(uint32_t), num_lines, 2 * sizeof(uint32_t)};
    for (size_t i = 0; i < kNumBuffers; ++i) {
      if (buffers_[i] != nullptr && sizes_[i] >= needed[i]) continue;
      if (buffers_[i] != nullptr) api_.clReleaseMemObject(buffers_[i]);
      int32_t status = 0;
      sizes_[i] = std::max<size_t>(needed[i] + needed[i] / 4, 64);
      buffers_[i] = api_.clCreateBuffer(context_, opencl::kMemReadWrite, sizes_[i], nullptr, &status);
      check_call(status, "clCreateBuffer");
    }
  }

  template <class T>
  void set(uint32_t index, const T& value) {
    check_call(api_.clSetKernelArg(kernel_, index, sizeof value, &value), "clSetKernelArg");
  }
  void write(Buffer i, const void* data, size_t num_bytes) {
    if (num_bytes == 0) return;
    check_call(api_.clEnqueueWriteBuffer(queue_, buffers_[i], opencl::kTrue, 0, num_bytes, data, 0, nullptr,
                                         nullptr),
               "clEnqueueWriteBuffer");
  }
  void read(Buffer i, void* data, size_t num_bytes) {
    if (num_bytes == 0) return;
    check_call(
        api_.clEnqueueReadBuffer(queue_, buffers_[i], opencl::kTrue, 0, num_bytes, data, 0, nullptr, nullptr),
        "clEnqueueReadBuffer");
  }

  const Api& api_;
  Handle device_;
  Handle context_ = nullptr, queue_ = nullptr, program_ = nullptr, kernel_ = nullptr;
  Handle buffers_[kNumBuffers] = {};
  size_t sizes_[kNumBuffers] = {};
};

}  // namespace

std::string why_no_opencl() {
  return find_device().problem;
}

std::unique_ptr<LineDecoder> make_opencl_decoder() {
  const Device device = find_device();
  if (!device.problem.empty())
    throw_user_error("data.decode.device is \"opencl\", but ", device.problem, kOpenClWayOut);
  return std::make_unique<OpenClDecoder>(device);
}

}  // namespace moebius::data
