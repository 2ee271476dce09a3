#include "energy/powerd/power_service.h"

#include <algorithm>
#include <sstream>

#include "base/concat.h"
#include "base/log.h"

namespace moebius::energy::powerd {
namespace {

std::string error_line(const char* kind, const std::string& text) {
  std::string line = concat("error ", kind, " ", text);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

const char* kind_word(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kPermission:
      return "permission";
    case ErrorKind::kInvalid:
      return "invalid";
    case ErrorKind::kNotFound:
      return "not-found";
    case ErrorKind::kUnsupported:
      return "unsupported";
    default:
      return "failed";
  }
}

std::string error_line(const Error& error) {
  return error_line(kind_word(error.kind), error.message);
}

}  // namespace

PowerService::PowerService(const Nvml& nvml, const ServiceOptions& options, const Clock& clock,
                           std::function<void(const std::vector<std::string>&)> on_locks)
    : options_(options), clock_(clock), on_locks_(std::move(on_locks)) {
  const int count = nvml.num_devices().value_or(0);
  for (int i = 0; i < count; ++i) {
    const auto device = nvml.device(i);
    if (!device) continue;
    const auto uuid = device->uuid();
    if (!uuid) continue;
    uuids_.push_back(*uuid);
    gpus_.emplace(*uuid, ClockControl(*device));
  }
}

PowerService::~PowerService() {
  while (!locks_.empty()) reset(locks_.begin()->first);
}

bool PowerService::may_set(const Client& client, std::string* why) const {
  if (!options_.may_set) {
    *why = "moebius-powerd runs read-only; start it with --may-set-clocks on a machine that is yours to tune";
    return false;
  }
  const auto& allowed = options_.allowed_uids;
  if (client.uid == 0 || std::find(allowed.begin(), allowed.end(), client.uid) != allowed.end()) return true;
  *why = concat("user ", client.uid, " may not set clocks; add it with --allow-uid ", client.uid);
  return false;
}

std::string PowerService::handle(const Client& client, const std::string& request) {
  std::istringstream words(request);
  std::string verb, uuid;
  words >> verb;
  if (verb == "gpus") {
    std::string answer;
    for (const std::string& each : uuids_)
      answer += concat(each, " ", gpus_.at(each).device().name().value_or("unknown"), "\n");
    return answer + "ok";
  }
  if (verb == "status") return status();
  if (verb == "renew") {
    double seconds = 0;
    if (!(words >> seconds) || !(seconds > 0)) return error_line("invalid", "renew needs seconds");
    for (auto& [each, lock] : locks_)
      if (lock.client.id == client.id)
        lock.until = clock_.seconds() + std::min(seconds, options_.longest_lease_seconds);
    return "ok";
  }
  if (verb != "clocks" && verb != "lock" && verb != "reset")
    return error_line("invalid",
                      concat("'", verb, "' is not allowed; gpus, clocks, status, lock, renew and reset are"));
  if (!(words >> uuid)) return error_line("invalid", concat(verb, " needs the UUID of a GPU"));
  const auto gpu = gpus_.find(uuid);
  if (gpu == gpus_.end()) return error_line("not-found", concat("no GPU ", uuid, " here"));
  if (verb == "clocks") {
    const auto clocks = gpu->second.device().supported_clocks_mhz();
    if (!clocks) return error_line(clocks.error());
    std::string answer = "ok";
    for (const int mhz : *clocks) answer += concat(" ", mhz);
    return answer;
  }
  if (verb == "reset") {
    const auto lock = locks_.find(uuid);
    if (lock != locks_.end() && lock->second.client.id == client.id) reset(uuid);
    return "ok";
  }
  int mhz = 0;
  double seconds = 0;
  if (!(words >> mhz >> seconds) || !(seconds > 0))
    return error_line("invalid", "lock needs UUID, MHz and seconds");
  return lock(client, uuid, mhz, seconds);
}

std::string PowerService::lock(const Client& client, const std::string& uuid, int mhz, double seconds) {
  std::string why;
  if (!may_set(client, &why)) return error_line("permission", why);
  const auto held = locks_.find(uuid);
  if (held != locks_.end() && held->second.client.id != client.id)
    return error_line("busy", concat(uuid, " is locked by process ", held->second.client.pid));
  if (mhz < options_.min_mhz || mhz > options_.max_mhz)
    return error_line("invalid", concat(mhz, " MHz is outside what this daemon allows, ", options_.min_mhz,
                                        " to ", options_.max_mhz, " MHz"));
  // Written down before it is done: should this process die in between, a reset too many harms nobody.
  const bool is_new = held == locks_.end();
  locks_[uuid] = {client, mhz, clock_.seconds() + std::min(seconds, options_.longest_lease_seconds)};
  if (is_new) tell_locks();
  const auto locked = gpus_.at(uuid).lock(mhz);
  if (locked) return concat("ok ", mhz);
  if (is_new) {
    locks_.erase(uuid);
    tell_locks();
  }
  return error_line(locked.error());
}

std::string PowerService::status() const {
  std::string answer = options_.may_set ? "ok may-set" : "ok read-only";
  for (const auto& [uuid, lock] : locks_)
    answer += concat("; ", uuid, " ", lock.mhz, " MHz by process ", lock.client.pid, " for ",
                     static_cast<int64_t>(lock.until - clock_.seconds()), " s");
  return answer;
}

void PowerService::reset(const std::string& uuid) {
  const auto done = gpus_.at(uuid).reset();
  if (!done) log_error("the clocks of ", uuid, " could not be reset: ", done.error().message);
  locks_.erase(uuid);
  if (done) tell_locks();  // else it stays written down, for the helper to try again
}

void PowerService::tell_locks() const {
  if (!on_locks_) return;
  std::vector<std::string> uuids;
  for (const auto& [uuid, lock] : locks_) uuids.push_back(uuid);
  on_locks_(uuids);
}

void PowerService::disconnect(int64_t client_id) {
  std::vector<std::string> uuids;
  for (const auto& [uuid, lock] : locks_)
    if (lock.client.id == client_id) uuids.push_back(uuid);
  for (const std::string& uuid : uuids) reset(uuid);
}

void PowerService::expire() {
  std::vector<std::string> over;
  for (const auto& [uuid, lock] : locks_)
    if (lock.until <= clock_.seconds()) over.push_back(uuid);
  for (const std::string& uuid : over) {
    log_warn("the lease of ", uuid, " ran out; its clocks are reset");
    reset(uuid);
  }
}

std::optional<double> PowerService::next_expiry_seconds() const {
  std::optional<double> next;
  for (const auto& [uuid, lock] : locks_) next = std::min(next.value_or(lock.until), lock.until);
  if (!next) return std::nullopt;
  return std::max(0.0, *next - clock_.seconds());
}

}  // namespace moebius::energy::powerd
