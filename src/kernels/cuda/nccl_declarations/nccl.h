// The wheel of libtorch ships ProcessGroupNCCL.hpp without NCCL's header that it includes. This file declares
// as much of NCCL 2.28.9, with which libtorch 2.11.0 was built, as that header needs to be read: values and
// sizes are those of its binary interface, which the layout of c10d's process group depends on. Nothing of it
// is called by name, and no object of these types is made outside libtorch.
#pragma once

#include <cuda_runtime_api.h>

#include <climits>
#include <cstddef>

#define NCCL_MAJOR 2
#define NCCL_MINOR 28
#define NCCL_PATCH 9
// Since NCCL 2.9; libtorch asks for versions from 2.11 on.
#define NCCL_VERSION(major, minor, patch) ((major)*10000 + (minor)*100 + (patch))
#define NCCL_VERSION_CODE NCCL_VERSION(NCCL_MAJOR, NCCL_MINOR, NCCL_PATCH)

#define NCCL_UNIQUE_ID_BYTES 128
#define NCCL_SPLIT_NOCOLOR (-1)
#define NCCL_CONFIG_INITIALIZER \
  {}
#define NCCL_SIM_INFO_INITIALIZER \
  {}

extern "C" {

using ncclComm_t = struct ncclComm*;
using ncclWindow_t = struct ncclWindow_vidmem*;

struct ncclUniqueId {
  char internal[NCCL_UNIQUE_ID_BYTES];
};

enum ncclResult_t { ncclSuccess = 0, ncclRemoteError = 6, ncclInProgress = 7, ncclNumResults = 8 };

enum ncclRedOp_t { ncclSum = 0, ncclMaxRedOp = 0x7fffffff };

enum ncclDataType_t {
  ncclInt8 = 0,
  ncclUint8 = 1,
  ncclInt32 = 2,
  ncclInt64 = 4,
  ncclFloat16 = 6,
  ncclHalf = ncclFloat16,
  ncclFloat32 = 7,
  ncclFloat = ncclFloat32,
  ncclFloat64 = 8,
  ncclDouble = ncclFloat64,
  ncclBfloat16 = 9,
  ncclFloat8e4m3 = 10,
  ncclFloat8e5m2 = 11
};

// libtorch's own constructor of options fills it in. A process group is laid out around it, so that its size
// counts: that of size and version, six numbers, a pointer, and so on.
struct ncclConfig_t {
  size_t size;
  unsigned int magic, version;
  int blocking, cgaClusterSize, minCTAs, maxCTAs;
  const char* netName;
  int splitShare, trafficClass;
  const char* commName;
  int collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs, nChannelsPerNetPeer, nvlinkCentricSched;
};

ncclResult_t ncclRedOpDestroy(ncclRedOp_t op, ncclComm_t comm);

}  // extern "C"
