// A library with NVML's interface and invented devices, for tests on machines without an NVIDIA driver. What
// it does comes from the environment (energy/nvml_stand_in.h). Compiled a second time with
// MOEBIUS_STAND_IN_OLD it lacks what drivers before 535 lack.
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <sstream>
#include <string>

namespace {

constexpr int kInvalidArgument = 2;
constexpr int kNotSupported = 3;
constexpr int kNotFound = 6;
constexpr int kInsufficientSize = 7;

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
int energy_calls = 0, power_calls = 0;

// The answer of call number `calls` among `recorded`; the last one for ever.
std::string recorded_answer(const std::string& recorded, int calls) {
  std::istringstream words(recorded);
  std::string answer, word;
  for (int i = 0; i <= calls && words >> word; ++i) answer = word;
  return answer;
}

int index_of(void* device) {
  return static_cast<int>(static_cast<int*>(device) - devices);
}

constexpr unsigned kLowestMhz = 210, kHighestMhz = 1980, kStepMhz = 15, kMemoryMhz = 2619;

std::string lock_file(void* device) {
  const std::string folder = text_of("MOEBIUS_STAND_IN_STATE");
  return folder.empty() ? "" : folder + "/gpu" + std::to_string(index_of(device)) + ".locked";
}

// The clock that a lock has brought about; 0 without one, or while the change has not come through.
unsigned locked_mhz(void* device) {
  const std::string file = lock_file(device), delay = text_of("MOEBIUS_STAND_IN_SWITCH_MS");
  std::FILE* opened = file.empty() || delay == "never" ? nullptr : std::fopen(file.c_str(), "r");
  if (opened == nullptr) return 0;
  unsigned mhz = 0;
  if (std::fscanf(opened, "%u", &mhz) != 1) mhz = 0;
  struct stat status {};
  fstat(fileno(opened), &status);
  std::fclose(opened);
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  const double age_ms = static_cast<double>(now.tv_sec - status.st_mtim.tv_sec) * 1e3 +
                        static_cast<double>(now.tv_nsec - status.st_mtim.tv_nsec) / 1e6;
  return age_ms + 1e-6 < std::atof(delay.c_str()) ? 0 : mhz;
}

}  // namespace

extern "C" {

int nvmlInit_v2() {
  energy_calls = power_calls = 0;
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
  const std::string answer = recorded_answer(recorded.empty() ? "5000" : recorded, energy_calls++);
  if (answer[0] == '!') return std::atoi(answer.c_str() + 1);
  *millijoules = std::strtoull(answer.c_str(), nullptr, 10);
  return 0;
}

int nvmlDeviceGetPowerUsage(void*, unsigned* milliwatts) {
  *milliwatts = 310'000;
  return query_status();
}

int nvmlDeviceGetClockInfo(void* device, int domain, unsigned* mhz) {
  constexpr unsigned kMhz[] = {1975, kHighestMhz, kMemoryMhz};
  if (domain < 0 || domain > 2) return kNotSupported;
  const unsigned locked = domain == 2 ? 0 : locked_mhz(device);
  *mhz = locked > 0 ? locked : kMhz[domain];
  return query_status();
}

int nvmlDeviceGetSupportedMemoryClocks(void*, unsigned* count, unsigned* mhz) {
  if (*count < 1) return kInsufficientSize;
  *count = 1;
  *mhz = kMemoryMhz;
  return query_status();
}

int nvmlDeviceGetSupportedGraphicsClocks(void*, unsigned memory_mhz, unsigned* count, unsigned* mhz) {
  constexpr unsigned kNeeded = (kHighestMhz - kLowestMhz) / kStepMhz + 1;
  if (memory_mhz != kMemoryMhz) return kNotFound;
  if (*count < kNeeded) return kInsufficientSize;
  *count = kNeeded;
  for (unsigned i = 0; i < kNeeded; ++i) mhz[i] = kHighestMhz - i * kStepMhz;
  return query_status();
}

int nvmlDeviceSetGpuLockedClocks(void* device, unsigned least, unsigned most) {
  if (const int status = number_of("MOEBIUS_STAND_IN_LOCK_STATUS", 0); status != 0) return status;
  if (least != most || most < kLowestMhz || most > kHighestMhz) return kInvalidArgument;
  const std::string file = lock_file(device);
  std::FILE* opened = file.empty() ? nullptr : std::fopen(file.c_str(), "w");
  if (opened == nullptr) return kNotSupported;
  std::fprintf(opened, "%u\n", most);
  std::fclose(opened);
  return 0;
}

int nvmlDeviceResetGpuLockedClocks(void* device) {
  if (const int status = number_of("MOEBIUS_STAND_IN_LOCK_STATUS", 0); status != 0) return status;
  const std::string file = lock_file(device);
  if (file.empty()) return kNotSupported;
  std::remove(file.c_str());
  return 0;
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
    int status = (field != 185 && field != 186) || scope != served ? kNotSupported : 0;
    unsigned type = 1, milliwatts = 642'000;
    if (field == 186 && status == 0) {
      const std::string recorded = text_of("MOEBIUS_STAND_IN_POWER");
      const std::string answer = recorded_answer(recorded.empty() ? "655500" : recorded, power_calls++);
      if (answer[0] == '!')
        status = std::atoi(answer.c_str() + 1);
      else
        milliwatts = static_cast<unsigned>(std::strtoul(answer.c_str(), nullptr, 10));
    }
    std::memcpy(value + 24, &type, 4);
    std::memcpy(value + 28, &status, 4);
    std::memcpy(value + 32, &milliwatts, 4);
  }
  return query_status();
}

#endif

}  // extern "C"
