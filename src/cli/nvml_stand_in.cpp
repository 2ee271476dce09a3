// A library with NVML's interface and invented devices, for tests on machines without an NVIDIA driver. How
// many and whether it starts comes from the environment: MOEBIUS_STAND_IN_GPUS, MOEBIUS_STAND_IN_STATUS.
#include <cstdlib>
#include <cstring>

namespace {

int number_of(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoi(text);
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  return number_of("MOEBIUS_STAND_IN_STATUS", 0);
}
int nvmlShutdown() {
  return 0;
}

int nvmlSystemGetDriverVersion(char* version, unsigned length) {
  std::strncpy(version, "580.95.05", length);
  return 0;
}

int nvmlSystemGetCudaDriverVersion_v2(int* version) {
  *version = 13000;
  return 0;
}

int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = static_cast<unsigned>(number_of("MOEBIUS_STAND_IN_GPUS", 1));
  return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  static int devices[16];
  *device = &devices[index % 16];
  return 0;
}

int nvmlDeviceGetName(void*, char* name, unsigned length) {
  std::strncpy(name, "Stand-in GPU", length);
  return 0;
}

int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = 9;
  *minor = 0;
  return 0;
}

int nvmlDeviceGetMemoryInfo(void*, unsigned long long* total_free_used) {
  total_free_used[0] = 80ULL << 30;
  total_free_used[1] = 79ULL << 30;
  total_free_used[2] = 1ULL << 30;
  return 0;
}

int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* millijoules) {
  *millijoules = 5000;
  return 0;
}

}  // extern "C"
