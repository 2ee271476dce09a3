// Functions that kernels and tests without a GPU share.
#pragma once

#if defined(__CUDACC__)
#define MOEBIUS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define MOEBIUS_HOST_DEVICE inline
#endif
