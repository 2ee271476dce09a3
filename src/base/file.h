// Files: whole reads, atomic writes, read-only maps. Every failure is a UserError that names the path, the
// reason and the way out. A crash (SIGKILL, power) at any moment leaves either the old file or the new one,
// never a mixture.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace moebius {

std::string read_file(const std::filesystem::path& path);

// A file that appears under its name only when it is whole: written to a hidden name in the same folder, then
// fsync, rename, fsync of the folder. Without commit() (an exception, an early return) nothing is left
// behind. One thread at a time.
class AtomicFile {
 public:
  // Makes missing parent folders. `expected_bytes`, when known, is reserved at once, so that a full disk is
  // met before anything is written.
  explicit AtomicFile(std::filesystem::path path, int64_t expected_bytes = 0);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, size_t num_bytes);
  void write(std::span<const std::byte> bytes) { write(bytes.data(), bytes.size()); }
  void write(std::string_view text) { write(text.data(), text.size()); }
  int64_t bytes_written() const { return written_bytes_; }

  void commit();

 private:
  [[noreturn]] void fail(const char* what, int error_number);
  void close_and_remove() noexcept;

  std::filesystem::path path_, temporary_;
  int fd_ = -1;
  int64_t expected_bytes_, written_bytes_ = 0;
  int64_t sent_bytes_ = 0;  // to the disk
};

void write_file_atomic(const std::filesystem::path& path, std::string_view contents);

// Read-only map of a whole file; the bytes stay valid while the object lives. Empty files map to an empty
// span. A file that somebody shortens while it is mapped makes later reads fail with SIGBUS; atomic writers
// never do.
class MappedFile {
 public:
  enum class Access { kNormal, kSequential, kRandom };

  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  std::string_view text() const { return {static_cast<const char*>(data_), size_}; }
  size_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }
  void advise(Access access) const;
  // Hints for a part: it is read next, so that the disk may begin; it will not be read again soon, so that
  // its pages need not count as this process's memory.
  void will_read(size_t begin, size_t num_bytes) const;
  void was_read(size_t begin, size_t num_bytes) const;

 private:
  void advise_part(size_t begin, size_t end, int advice) const;

  std::filesystem::path path_;
  const void* data_ = nullptr;
  size_t size_ = 0;
};

// A file that grows over several processes: opened at a length that is known to be whole (what a killed
// process wrote behind it is cut off), written at its end, made durable on demand. Stays when the object
// goes, without what was written after the last sync(). One thread at a time.
class AppendFile {
 public:
  // Makes the file and missing parent folders. UserError when it is shorter than `keep_bytes`.
  explicit AppendFile(std::filesystem::path path, int64_t keep_bytes = 0);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  void write(const void* data, size_t num_bytes);
  int64_t num_bytes() const { return num_bytes_; }
  void sync();
  // Syncs and closes the file, then moves it to `to` in one step, durably.
  void publish(const std::filesystem::path& to);

 private:
  [[noreturn]] void fail(int error_number) const;
  void flush();

  std::filesystem::path path_;
  int fd_ = -1;
  int64_t num_bytes_;
  std::string buffer_;
};

// Holds an advisory lock of a folder that it makes when there is none; a second holder, in this process or
// another, waits. The folder may be removed while it is locked.
class FolderLock {
 public:
  explicit FolderLock(const std::filesystem::path& folder);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

void make_folders(const std::filesystem::path& folder);
// Removes a file or folder with all it holds; nothing happens when it is not there.
void remove_tree(const std::filesystem::path& path);
// Moves a finished folder to its name in one step, durably. A folder that has the name already is replaced:
// readers see the old one or the new one, never none. Both must lie on one file system.
void publish_folder(const std::filesystem::path& from, const std::filesystem::path& to);
// A folder that appears under its name only when it is whole: filled under a hidden name beside it, then
// published. Without publish() nothing is left behind. UserError when the name is taken.
class NewFolder {
 public:
  explicit NewFolder(const std::filesystem::path& path);
  ~NewFolder();
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;

  const std::filesystem::path& path() const { return temporary_; }  // to be filled
  const std::filesystem::path& final_path() const { return path_; }
  void publish();

 private:
  std::filesystem::path path_, temporary_;
};
// Makes renames and removals inside `folder` durable.
void sync_folder(const std::filesystem::path& folder);
// Removes what killed processes left of AtomicFile in `folder` (not below it); returns how many files.
int remove_stale_temporaries(const std::filesystem::path& folder);

// Bytes that this user can still write on the file system of `path` (or of its nearest existing parent).
int64_t free_bytes(const std::filesystem::path& path);

// Fault injection for tests: while it lives, all AtomicFile writes of this process together may write
// `num_bytes`; then the "disk" is full.
class ScopedDiskLimit {
 public:
  explicit ScopedDiskLimit(int64_t num_bytes);
  ~ScopedDiskLimit();
  ScopedDiskLimit(const ScopedDiskLimit&) = delete;
  ScopedDiskLimit& operator=(const ScopedDiskLimit&) = delete;
};

}  // namespace moebius
