// The few functions of OpenCL 1.2 (Khronos) that the decoder needs, from a libOpenCL that is loaded at run
// time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace moebius::data::opencl {

using Handle = void*;  // of a platform, device, context, queue, program, kernel or buffer

// Values of the standard's constants.
inline constexpr int32_t kSuccess = 0;
inline constexpr uint64_t kDeviceTypeCpu = 1 << 1, kDeviceTypeGpu = 1 << 2, kDeviceTypeAccelerator = 1 << 3;
inline constexpr uint32_t kDeviceName = 0x102B, kProgramBuildLog = 0x1183, kTrue = 1;
inline constexpr uint64_t kMemReadWrite = 1 << 0;

struct Api {
  int32_t (*clGetPlatformIDs)(uint32_t, Handle*, uint32_t*);
  int32_t (*clGetDeviceIDs)(Handle, uint64_t, uint32_t, Handle*, uint32_t*);
  int32_t (*clGetDeviceInfo)(Handle, uint32_t, size_t, void*, size_t*);
  Handle (*clCreateContext)(const intptr_t*, uint32_t, const Handle*,
                            void (*)(const char*, const void*, size_t, void*), void*, int32_t*);
  Handle (*clCreateCommandQueue)(Handle, Handle, uint64_t, int32_t*);
  Handle (*clCreateProgramWithSource)(Handle, uint32_t, const char**, const size_t*, int32_t*);
  int32_t (*clBuildProgram)(Handle, uint32_t, const Handle*, const char*, void (*)(Handle, void*), void*);
  int32_t (*clGetProgramBuildInfo)(Handle, Handle, uint32_t, size_t, void*, size_t*);
  Handle (*clCreateKernel)(Handle, const char*, int32_t*);
  Handle (*clCreateBuffer)(Handle, uint64_t, size_t, void*, int32_t*);
  int32_t (*clSetKernelArg)(Handle, uint32_t, size_t, const void*);
  int32_t (*clEnqueueTask)(Handle, Handle, uint32_t, const Handle*, Handle*);
  int32_t (*clEnqueueWriteBuffer)(Handle, Handle, uint32_t, size_t, size_t, const void*, uint32_t,
                                  const Handle*, Handle*);
  int32_t (*clEnqueueReadBuffer)(Handle, Handle, uint32_t, size_t, size_t, void*, uint32_t, const Handle*,
                                 Handle*);
  int32_t (*clReleaseMemObject)(Handle);
  int32_t (*clReleaseKernel)(Handle);
  int32_t (*clReleaseProgram)(Handle);
  int32_t (*clReleaseCommandQueue)(Handle);
  int32_t (*clReleaseContext)(Handle);
};

// Loaded once; null when the library or one of the functions is missing, then `problem` says so.
const Api* load(std::string& problem);

}  // namespace moebius::data::opencl
