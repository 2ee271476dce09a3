#include "telemetry/jsonl.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace moebius::telemetry {
namespace {

// Bytes of `text` that a run resumed after `resume_step` keeps.
size_t kept_size(std::string_view text, int64_t resume_step) {
  size_t kept = 0;
  while (kept < text.size()) {
    const size_t end = text.find('\n', kept);
    if (end == std::string_view::npos) break;  // torn
    const auto line = nlohmann::json::parse(text.substr(kept, end - kept), nullptr, false);
    const bool is_last = end + 1 == text.size();
    if (line.is_discarded() && is_last) break;
    if (line.is_object()) {
      const auto step = line.find("step");
      if (step != line.end() && step->is_number() && step->get<double>() > static_cast<double>(resume_step))
        break;
    }
    kept = end + 1;
  }
  return kept;
}

}  // namespace

JsonlWriter::JsonlWriter(std::filesystem::path path, std::optional<int64_t> resume_step)
    : path_(std::move(path)) {
  if (path_.has_parent_path()) make_folders(path_.parent_path());
  if (resume_step && std::filesystem::exists(path_)) {
    const MappedFile former(path_);
    size_ = static_cast<int64_t>(kept_size(former.text(), *resume_step));
  }
  fd_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd_ < 0 || ::ftruncate(fd_, size_) != 0) {
    const int error_number = errno;
    if (fd_ >= 0) ::close(fd_);
    throw_user_error("cannot write '", path_.string(), "': ", std::strerror(error_number),
                     "; change its permissions or choose another run folder");
  }
}

JsonlWriter::~JsonlWriter() {
  ::close(fd_);
}

void JsonlWriter::write(const nlohmann::ordered_json& object) {
  const std::string line =
      object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  const std::lock_guard<std::mutex> lock(mutex_);
  size_t done = 0;
  while (done < line.size()) {
    const ssize_t count = ::write(fd_, line.data() + done, line.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) break;
    done += static_cast<size_t>(count);
  }
  if (done == line.size()) {
    size_ += static_cast<int64_t>(done);
    return;
  }
  const int error_number = errno;
  if (done > 0 && ::ftruncate(fd_, size_) != 0) size_ += static_cast<int64_t>(done);  // a torn line stays
  if (num_lost_++ == 0) {
    log_warn("cannot write '", path_.string(), "': ", std::strerror(error_number),
             "; training goes on, but lines of metrics are lost until there is space");
  }
}

void JsonlWriter::sync() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ::fsync(fd_);  // what fails here fails again, and is reported, at the next write
}

}  // namespace moebius::telemetry
