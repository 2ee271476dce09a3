// metrics.jsonl: one JSON object per line. Format: docs/formats/metrics.md.
#pragma once

#include <cstdint>
#include <filesystem>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>

namespace moebius::telemetry {

// Appends lines. Each line reaches the system at once with one write, so a killed process loses at most the
// line it was writing; sync() makes all of them survive a power cut as well. Thread-safe.
class JsonlWriter {
 public:
  // With `resume_step` an existing file is continued: everything from the first line whose "step" is above it
  // is cut off (the resumed run writes those again), and so is a torn last line. Without it the file starts
  // empty. UserError when the file cannot be opened.
  explicit JsonlWriter(std::filesystem::path path, std::optional<int64_t> resume_step = std::nullopt);
  ~JsonlWriter();
  JsonlWriter(const JsonlWriter&) = delete;
  JsonlWriter& operator=(const JsonlWriter&) = delete;

  // Numbers that are not finite become null. A full disk costs lines, not the run: the first failure is
  // logged as a warning, and no line is ever left half written.
  void write(const nlohmann::ordered_json& object);
  void sync();

  int64_t num_lost() const { return num_lost_; }

 private:
  std::filesystem::path path_;
  std::mutex mutex_;
  int fd_ = -1;
  int64_t size_ = 0;
  int64_t num_lost_ = 0;
};

}  // namespace moebius::telemetry
