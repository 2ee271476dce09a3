// A library with NVML's interface and invented devices, for tests on machines without an NVIDIA driver. What
// it does comes from the environment (energy/nvml_stand_in.h). Compiled a second time with
// MOEBIUS_STAND_IN_OLD it lacks what drivers before 535 lack.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>

namespace {

constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;

std::string text_of(const char* name) {
  const char* text = std::getenv(name);
  return text == nullptr ? "" : text;
}

int number_of(const char* name, int otherwise) {
  const std::string text = text_of(name);
  return text.empty() ? otherwise : std::atoi(text.c_str());
}

unsigned num_gpus() {
  return static_cast<unsigned>(number_of("MOEBIUS_STAND_IN_GPUS", 1));
}

// Every device query but the energy counter's answers this.
int query_status() {
  return number_of("MOEBIUS_STAND_IN_QUERY_STATUS", 0);
}

int devices[16];
int energy_calls = 0;

int index_of(void* device) {
  return static_cast<int>(static_cast<int*>(device) - devices);
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  energy_calls = 0;
  return number_of("MOEBIUS_STAND_IN_STATUS", 0);
}
int nvmlShutdown() {
  return 0;
}

const char* nvmlErrorString(int status) {
  switch (status) {
    case 3:
      return "Not Supported";
    case 4:
      return "Insufficient Permissions";
    case 6:
      return "Not Found";
    case 15:
      return "GPU is lost";
    default:
      return "Unknown Error";
  }
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
  *count = num_gpus();
  return 0;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = &devices[index % 16];
  return 0;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** device) {
  for (unsigned index = 0; index < num_gpus(); ++index) {
    char own[16];
    std::snprintf(own, sizeof own, "0000:%02x:00.0", 0x3b + index);
    if (std::strcmp(own, id) == 0) return nvmlDeviceGetHandleByIndex_v2(index, device);
  }
  return kNotFound;
}

int nvmlDeviceGetName(void*, char* name, unsigned length) {
  std::strncpy(name, "Stand-in GPU", length);
  return query_status();
}

int nvmlDeviceGetUUID(void* device, char* uuid, unsigned length) {
  std::snprintf(uuid, length, "GPU-00000000-0000-0000-0000-%012d", index_of(device));
  return query_status();
}

int nvmlDeviceGetPciInfo_v3(void* device, char* info) {
  // busId, the last member of nvmlPciInfo_t.
  std::snprintf(info + 36, 32, "00000000:%02X:00.0", static_cast<unsigned>(0x3b + index_of(device)));
  return query_status();
}

int nvmlDeviceGetCudaComputeCapability(void*, int* major, int* minor) {
  *major = 9;
  *minor = 0;
  return query_status();
}

int nvmlDeviceGetMemoryInfo(void*, unsigned long long* total_free_used) {
  total_free_used[0] = 80ULL << 30;
  total_free_used[1] = 79ULL << 30;
  total_free_used[2] = 1ULL << 30;
  return query_status();
}

int nvmlDeviceGetTotalEnergyConsumption(void*, unsigned long long* millijoules) {
  const std::string recorded = text_of("MOEBIUS_STAND_IN_ENERGY");
  std::istringstream words(recorded.empty() ? "5000" : recorded);
  std::string answer, word;
  for (int i = 0; i <= energy_calls && words >> word; ++i) answer = word;
  ++energy_calls;
  if (answer[0] == '!') return std::atoi(answer.c_str() + 1);
  *millijoules = std::strtoull(answer.c_str(), nullptr, 10);
  return 0;
}

int nvmlDeviceGetPowerUsage(void*, unsigned* milliwatts) {
  *milliwatts = 310'000;
  return query_status();
}

int nvmlDeviceGetClockInfo(void*, int domain, unsigned* mhz) {
  constexpr unsigned kMhz[] = {1975, 1980, 2619};
  if (domain < 0 || domain > 2) return kNotSupported;
  *mhz = kMhz[domain];
  return query_status();
}

int nvmlDeviceGetUtilizationRates(void*, unsigned* gpu_memory) {
  gpu_memory[0] = 98;
  gpu_memory[1] = 40;
  return query_status();
}

#ifdef MOEBIUS_STAND_IN_OLD

int nvmlDeviceGetTemperature(void*, int, unsigned* celsius) {
  *celsius = 41;
  return query_status();
}

int nvmlDeviceGetCurrentClocksThrottleReasons(void*, unsigned long long* reasons) {
  *reasons = 1;
  return query_status();
}

#else

int nvmlDeviceGetTemperatureV(void*, unsigned* version_sensor_celsius) {
  constexpr int kArgumentVersionMismatch = 25;
  if (version_sensor_celsius[0] != (12U | 1U << 24)) return kArgumentVersionMismatch;
  version_sensor_celsius[2] = 64;
  return query_status();
}

int nvmlDeviceGetCurrentClocksEventReasons(void*, unsigned long long* reasons) {
  *reasons = 0x4 | 0x20 | 0x1000;
  return query_status();
}

int nvmlDeviceGetMigMode(void*, unsigned* current, unsigned* pending) {
  *current = *pending = static_cast<unsigned>(number_of("MOEBIUS_STAND_IN_MIG", 0));
  return query_status();
}

// Of nvmlFieldValue_t: 0 field, 4 scope, 24 type, 28 status, 32 value.
int nvmlDeviceGetFieldValues(void*, int count, char* values) {
  for (int i = 0; i < count; ++i) {
    char* value = values + 40 * static_cast<long>(i);
    unsigned field = 0, scope = 0;
    std::memcpy(&field, value, 4);
    std::memcpy(&scope, value + 4, 4);
    const unsigned served = text_of("MOEBIUS_STAND_IN_POWER_SCOPE") == "module" ? 1 : 0;
    const int status = (field != 185 && field != 186) || scope != served ? kNotSupported : 0;
    const unsigned type = 1, milliwatts = field == 186 ? 655'500 : 642'000;
    std::memcpy(value + 24, &type, 4);
    std::memcpy(value + 28, &status, 4);
    std::memcpy(value + 32, &milliwatts, 4);
  }
  return query_status();
}

#endif

}  // extern "C"
