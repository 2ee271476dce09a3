// The one wrapper around CUDA runtime calls: a failure throws CudaError with the expression, the error's name
// and text, file and line. Kernel launches are followed by MOEBIUS_CUDA_CHECK_LAUNCH().
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

#include "base/concat.h"

namespace moebius::kernels::cuda {

class CudaError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

[[noreturn]] inline void cuda_failed(cudaError_t error, const char* expression, const char* file, int line) {
  throw CudaError(concat(file, ":", line, ": ", expression, " failed: ", cudaGetErrorName(error), " (",
                         cudaGetErrorString(error), ")"));
}

inline void check_cuda(cudaError_t error, const char* expression, const char* file, int line) {
  if (error != cudaSuccess) [[unlikely]]
    cuda_failed(error, expression, file, line);
}

}  // namespace moebius::kernels::cuda

#define MOEBIUS_CUDA_CHECK(expression) \
  ::moebius::kernels::cuda::check_cuda((expression), #expression, __FILE__, __LINE__)

// Reports what the launch itself found wrong. Errors of the running kernel surface at a later call.
#define MOEBIUS_CUDA_CHECK_LAUNCH(kernel) \
  ::moebius::kernels::cuda::check_cuda(cudaGetLastError(), "launch of " kernel, __FILE__, __LINE__)
