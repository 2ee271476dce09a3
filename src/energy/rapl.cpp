#include "energy/rapl.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <fstream>
#include <optional>
#include <tuple>

namespace moebius::energy {

namespace {

std::string line_or(const std::filesystem::path& path, const std::string& otherwise) {
  std::ifstream file(path);
  std::string line;
  return std::getline(file, line) ? line : otherwise;
}

ErrorKind kind_of_errno(int error_number) {
  switch (error_number) {
    case EACCES:
    case EPERM:
      return ErrorKind::kPermission;
    case ENOENT:
    case ENODEV:
      return ErrorKind::kNotFound;
    default:
      return ErrorKind::kUnavailable;
  }
}

// A file of powercap in micro-units.
Result<double> read_micro(const std::filesystem::path& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return make_error(kind_of_errno(errno), path.string(), ": ", std::strerror(errno));
  char text[32];
  const ssize_t length = ::read(fd, text, sizeof text);
  const int error_number = errno;
  ::close(fd);
  if (length < 0)
    return make_error(kind_of_errno(error_number), path.string(), ": ", std::strerror(error_number));
  uint64_t value = 0;
  if (std::from_chars(text, text + length, value).ec != std::errc())
    return make_error(ErrorKind::kInvalid, path.string(), ": holds no number");
  return static_cast<double>(value) / 1e6;
}

bool is_counted(const std::string& name) {
  return name.rfind("package-", 0) == 0 || name == "dram";
}

}  // namespace

Result<double> RaplDomain::joules() const {
  return read_micro(counter);
}

RaplSurvey survey_rapl(const std::filesystem::path& powercap) {
  RaplSurvey survey;
  std::error_code error;
  std::optional<Error> refused;
  for (const auto& entry : std::filesystem::directory_iterator(powercap, error)) {
    const std::string folder = entry.path().filename();
    // intel-rapl-mmio mirrors the same counters; counting it too would double them.
    if (folder.rfind("intel-rapl:", 0) != 0) continue;
    const auto counter = entry.path() / "energy_uj";
    if (!std::filesystem::exists(counter, error)) continue;
    survey.present = true;
    RaplDomain domain{line_or(entry.path() / "name", folder), counter};
    const auto joules = domain.joules();
    const auto range = read_micro(entry.path() / "max_energy_range_uj");
    if (!joules || !range) {
      const Error& problem = joules ? range.error() : joules.error();
      if (!refused || problem.kind == ErrorKind::kPermission) refused = problem;
      continue;
    }
    domain.range_joules = *range;
    domain.counted = is_counted(domain.name);
    survey.domains.push_back(std::move(domain));
  }
  std::sort(survey.domains.begin(), survey.domains.end(), [](const RaplDomain& a, const RaplDomain& b) {
    return std::tie(a.name, a.counter) < std::tie(b.name, b.counter);
  });
  if (!survey.domains.empty()) return survey;
  if (refused && refused->kind == ErrorKind::kPermission) {
    survey.why = concat("the counters under ", powercap.string(),
                        " are readable by root only; let your group read them: sudo chgrp -R $(id -gn) ",
                        powercap.string(), "/intel-rapl*/ && sudo chmod -R g+r ", powercap.string(),
                        "/intel-rapl*/, or run as root");
  } else if (refused) {
    survey.why = concat("the kernel's RAPL counters cannot be read: ", refused->message);
  } else {
    survey.why =
        "the kernel shows no RAPL counter: usual in virtual machines and containers; on own hardware load "
        "the module with: sudo modprobe intel_rapl_msr";
  }
  return survey;
}

}  // namespace moebius::energy
