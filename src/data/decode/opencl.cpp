#include "data/decode/opencl.h"

#include <dlfcn.h>

#include "base/concat.h"

namespace moebius::data::opencl {
namespace {

struct Loaded {
  Api api{};
  std::string problem;
};

Loaded load_once() {
  Loaded loaded;
  void* library = ::dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = ::dlerror();
    loaded.problem =
        concat("libOpenCL cannot be loaded (", reason != nullptr ? reason : "no reason given", ")");
    return loaded;
  }
  const auto find = [&](auto& function, const char* name) {
    void* address = ::dlsym(library, name);
    if (address == nullptr) loaded.problem = concat("libOpenCL has no ", name);
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(address);
  };
  Api& api = loaded.api;
  find(api.clGetPlatformIDs, "clGetPlatformIDs");
  find(api.clGetDeviceIDs, "clGetDeviceIDs");
  find(api.clGetDeviceInfo, "clGetDeviceInfo");
  find(api.clCreateContext, "clCreateContext");
  find(api.clCreateCommandQueue, "clCreateCommandQueue");
  find(api.clCreateProgramWithSource, "clCreateProgramWithSource");
  find(api.clBuildProgram, "clBuildProgram");
  find(api.clGetProgramBuildInfo, "clGetProgramBuildInfo");
  find(api.clCreateKernel, "clCreateKernel");
  find(api.clCreateBuffer, "clCreateBuffer");
  find(api.clSetKernelArg, "clSetKernelArg");
  find(api.clEnqueueTask, "clEnqueueTask");
  find(api.clEnqueueWriteBuffer, "clEnqueueWriteBuffer");
  find(api.clEnqueueReadBuffer, "clEnqueueReadBuffer");
  find(api.clReleaseMemObject, "clReleaseMemObject");
  find(api.clReleaseKernel, "clReleaseKernel");
  find(api.clReleaseProgram, "clReleaseProgram");
  find(api.clReleaseCommandQueue, "clReleaseCommandQueue");
  find(api.clReleaseContext, "clReleaseContext");
  return loaded;
}

}  // namespace

const Api* load(std::string& problem) {
  static const Loaded loaded = load_once();
  problem = loaded.problem;
  return loaded.problem.empty() ? &loaded.api : nullptr;
}

}  // namespace moebius::data::opencl
