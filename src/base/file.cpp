#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/units.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;

constexpr char kTemporaryMark[] = ".moebius-tmp-";
constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

std::atomic<int64_t> g_disk_left{kNoLimit};

// What to do about it, for the errors that a user can do something about.
const char* way_out(int error_number) {
  switch (error_number) {
    case ENOENT:
      return "; check the path";
    case EACCES:
    case EPERM:
      return "; change its permissions or choose another place";
    case EROFS:
      return "; the file system is read-only, choose another place";
    case EISDIR:
      return "; name a file instead";
    case ENOTDIR:
      return "; a part of the path is a file, choose another place";
    case EMFILE:
    case ENFILE:
      return "; raise the limit of open files (ulimit -n)";
    default:
      return "";
  }
}

[[noreturn]] void throw_file_error(const char* what, const fs::path& path, int error_number) {
  throw_user_error(what, " '", path.string(), "': ", std::strerror(error_number), way_out(error_number));
}

bool is_disk_full(int error_number) {
  return error_number == ENOSPC || error_number == EDQUOT || error_number == EFBIG;
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

int open_for_reading(const fs::path& path, struct stat& info) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw_file_error("cannot read", path, errno);
  if (::fstat(fd, &info) != 0 || S_ISDIR(info.st_mode)) {
    const int error_number = S_ISDIR(info.st_mode) ? EISDIR : errno;
    ::close(fd);
    throw_file_error("cannot read", path, error_number);
  }
  return fd;
}

// Sets errno and returns -1 as write(2) does; honours the injected limit.
ssize_t limited_write(int fd, const void* data, size_t num_bytes) {
  int64_t left = g_disk_left.load();
  if (left != kNoLimit) {
    int64_t take;
    do {
      take = std::min<int64_t>(left, static_cast<int64_t>(num_bytes));
      if (take <= 0) {
        errno = ENOSPC;
        return -1;
      }
    } while (!g_disk_left.compare_exchange_weak(left, left - take));
    num_bytes = static_cast<size_t>(take);
  }
  return ::write(fd, data, std::min<size_t>(num_bytes, size_t{1} << 30));
}

}  // namespace

std::string read_file(const fs::path& path) {
  struct stat info {};
  const Descriptor file(open_for_reading(path, info));
  std::string contents;
  contents.reserve(static_cast<size_t>(std::max<off_t>(info.st_size, 0)));
  char buffer[1 << 16];  // pipes and /proc files have no size to trust
  while (true) {
    const ssize_t count = ::read(file.get(), buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_file_error("cannot read", path, errno);
    if (count == 0) return contents;
    contents.append(buffer, static_cast<size_t>(count));
  }
}

AtomicFile::AtomicFile(fs::path path, int64_t expected_bytes)
    : path_(std::move(path)), expected_bytes_(expected_bytes) {
  static std::atomic<int> counter{0};
  MOEBIUS_CHECK(path_.has_filename(), "AtomicFile needs a file name, got '", path_.string(), "'");
  make_folders(folder_of(path_));
  if (fs::is_directory(path_)) throw_file_error("cannot write", path_, EISDIR);
  temporary_ =
      folder_of(path_) / concat(".", path_.filename().string(), kTemporaryMark, ::getpid(), "-", counter++);
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  if (fd_ < 0) fail("cannot write", errno);
  ::flock(fd_, LOCK_EX | LOCK_NB);  // marks the writer as alive (remove_stale_temporaries)
  if (expected_bytes_ > g_disk_left.load()) fail("cannot write", ENOSPC);
  // Not every file system can reserve; those meet the full disk while writing.
  if (expected_bytes_ > 0 && ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, expected_bytes_) != 0 &&
      is_disk_full(errno)) {
    fail("cannot write", errno);
  }
}

AtomicFile::~AtomicFile() {
  close_and_remove();
}

void AtomicFile::close_and_remove() noexcept {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

void AtomicFile::fail(const char* what, int error_number) {
  close_and_remove();  // before free_bytes, so that the message counts what this file gave back
  if (!is_disk_full(error_number)) throw_file_error(what, path_, error_number);
  const int64_t needed = std::max(expected_bytes_, written_bytes_);
  throw_user_error(what, " '", path_.string(),
                   "': ", error_number == ENOSPC ? "the disk is full" : std::strerror(error_number),
                   "; at least ", format_bytes(needed), " needed, ",
                   format_bytes(std::min(free_bytes(path_), std::max<int64_t>(g_disk_left.load(), 0))),
                   " free in '", folder_of(path_).string(), "'; free some space or choose another place");
}

void AtomicFile::write(const void* data, size_t num_bytes) {
  MOEBIUS_CHECK(fd_ >= 0, "write to '", path_.string(), "' after commit or failure");
  written_bytes_ += static_cast<int64_t>(num_bytes);  // on failure: what was needed up to here
  const char* next = static_cast<const char*>(data);
  while (num_bytes > 0) {
    const ssize_t count = limited_write(fd_, next, num_bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail("cannot write", errno);
    next += count;
    num_bytes -= static_cast<size_t>(count);
  }
  // Large files go to the disk while they are written; else commit() would begin with all of it.
  constexpr int64_t kSendBytes = int64_t{64} << 20;
  if (written_bytes_ - sent_bytes_ >= kSendBytes) {
    ::sync_file_range(fd_, sent_bytes_, written_bytes_ - sent_bytes_, SYNC_FILE_RANGE_WRITE);  // a hint
    sent_bytes_ = written_bytes_;
  }
}

void AtomicFile::commit() {
  MOEBIUS_CHECK(fd_ >= 0, "commit of '", path_.string(), "' after commit or failure");
  // Gives back what was reserved beyond the end.
  if (written_bytes_ < expected_bytes_ && ::ftruncate(fd_, written_bytes_) != 0) fail("cannot write", errno);
  if (::fsync(fd_) != 0) fail("cannot write", errno);
  if (::close(std::exchange(fd_, -1)) != 0) fail("cannot write", errno);
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("cannot write", errno);
  temporary_.clear();
  sync_folder(folder_of(path_));
}

void write_file_atomic(const fs::path& path, std::string_view contents) {
  AtomicFile file(path, static_cast<int64_t>(contents.size()));
  file.write(contents);
  file.commit();
}

AppendFile::AppendFile(fs::path path, int64_t keep_bytes) : path_(std::move(path)), num_bytes_(keep_bytes) {
  make_folders(folder_of(path_));
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) fail(errno);
  const off_t size = ::lseek(fd_, 0, SEEK_END);
  const bool is_short = size < keep_bytes;
  const bool failed = !is_short && (::ftruncate(fd_, keep_bytes) != 0 || ::lseek(fd_, 0, SEEK_END) < 0);
  if (!is_short && !failed) return;
  const int error_number = errno;
  ::close(std::exchange(fd_, -1));
  if (failed) fail(error_number);
  throw_user_error("'", path_.string(), "' has ", size, " bytes, expected at least ", keep_bytes,
                   "; it was damaged, remove it");
}

AppendFile::~AppendFile() {
  if (fd_ >= 0) ::close(fd_);
}

void AppendFile::fail(int error_number) const {
  if (!is_disk_full(error_number)) throw_file_error("cannot write", path_, error_number);
  throw_user_error("cannot write '", path_.string(), "' after ", format_bytes(num_bytes_), ": ",
                   error_number == ENOSPC ? "the disk is full" : std::strerror(error_number), ", ",
                   format_bytes(std::min(free_bytes(path_), std::max<int64_t>(g_disk_left.load(), 0))),
                   " free in '", folder_of(path_).string(), "'; free some space or choose another place");
}

void AppendFile::write(const void* data, size_t num_bytes) {
  constexpr size_t kBufferBytes = 1 << 18;
  MOEBIUS_CHECK(fd_ >= 0, "write to '", path_.string(), "' after its end");
  buffer_.append(static_cast<const char*>(data), num_bytes);
  num_bytes_ += static_cast<int64_t>(num_bytes);
  if (buffer_.size() >= kBufferBytes) flush();
}

void AppendFile::flush() {
  std::string_view rest = buffer_;
  while (!rest.empty()) {
    const ssize_t count = limited_write(fd_, rest.data(), rest.size());
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) fail(errno);
    rest.remove_prefix(static_cast<size_t>(count));
  }
  buffer_.clear();
}

void AppendFile::sync() {
  flush();
  if (::fsync(fd_) != 0) fail(errno);
}

void AppendFile::publish(const fs::path& to) {
  sync();
  if (::close(std::exchange(fd_, -1)) != 0) fail(errno);
  if (::rename(path_.c_str(), to.c_str()) != 0) throw_file_error("cannot write", to, errno);
  sync_folder(folder_of(to));
}

FolderLock::FolderLock(const fs::path& folder) {
  make_folders(folder_of(folder));
  while (true) {
    if (::mkdir(folder.c_str(), 0777) != 0 && errno != EEXIST)
      throw_file_error("cannot make the folder", folder, errno);
    const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) continue;  // removed by the one who had it
    if (fd < 0) throw_file_error("cannot open the folder", folder, errno);
    struct stat held {
    }, named{};
    int error_number = 0;
    while (::flock(fd, LOCK_EX) != 0 && (error_number = errno) == EINTR) error_number = 0;
    if (error_number == 0 && ::fstat(fd, &held) == 0 && ::stat(folder.c_str(), &named) == 0 &&
        held.st_ino == named.st_ino && held.st_dev == named.st_dev) {
      fd_ = fd;
      return;
    }
    ::close(fd);
    if (error_number != 0) throw_file_error("cannot lock the folder", folder, error_number);
  }
}

FolderLock::~FolderLock() {
  if (fd_ >= 0) ::close(fd_);
}

MappedFile::MappedFile(const fs::path& path) : path_(path) {
  struct stat info {};
  const Descriptor file(open_for_reading(path, info));
  size_ = static_cast<size_t>(info.st_size);
  if (size_ == 0) return;
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (data == MAP_FAILED) throw_file_error("cannot map", path, errno);
  data_ = data;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<void*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void MappedFile::advise(Access access) const {
  if (data_ == nullptr) return;
  const int advice = access == Access::kSequential ? MADV_SEQUENTIAL
                     : access == Access::kRandom   ? MADV_RANDOM
                                                   : MADV_NORMAL;
  ::madvise(const_cast<void*>(data_), size_, advice);  // a hint: its failure changes nothing
}

// Whole pages only: those that the part touches, or (MADV_DONTNEED) those that lie inside it.
void MappedFile::advise_part(size_t begin, size_t end, int advice) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  if (advice == MADV_DONTNEED) begin += page - 1;
  begin = begin / page * page;
  if (advice == MADV_DONTNEED) end = end == size_ ? end : end / page * page;
  if (data_ == nullptr || begin >= end) return;
  ::madvise(static_cast<char*>(const_cast<void*>(data_)) + begin, end - begin, advice);
}

void MappedFile::will_read(size_t begin, size_t num_bytes) const {
  advise_part(begin, begin + num_bytes, MADV_WILLNEED);
}

void MappedFile::was_read(size_t begin, size_t num_bytes) const {
  advise_part(begin, begin + num_bytes, MADV_DONTNEED);
}

void make_folders(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error && is_disk_full(error.value())) {
    throw_user_error("cannot make the folder '", folder.string(), "': the disk is full; free some space");
  }
  if (error) throw_file_error("cannot make the folder", folder, error.value());
}

void remove_tree(const fs::path& path) {
  std::error_code error;
  fs::remove_all(path, error);
  if (error) throw_file_error("cannot remove", path, error.value());
}

void publish_folder(const fs::path& from, const fs::path& to) {
  sync_folder(from);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) {
    sync_folder(folder_of(to));
    return;
  }
  if (errno == EINVAL && !fs::exists(to)) {  // a file system without renameat2
    if (::rename(from.c_str(), to.c_str()) != 0) throw_file_error("cannot make the folder", to, errno);
    sync_folder(folder_of(to));
    return;
  }
  if (errno != EEXIST && errno != EINVAL) throw_file_error("cannot make the folder", to, errno);
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE) != 0) {
    throw_file_error("cannot replace the folder", to, errno);
  }
  sync_folder(folder_of(to));
  remove_tree(from);  // the old contents, now under the other name
}

NewFolder::NewFolder(const fs::path& path) {
  if (fs::exists(path)) throw_user_error("'", path.string(), "' exists already; name a new folder");
  path_ = fs::absolute(path).lexically_normal();
  if (path_.filename().empty()) path_ = path_.parent_path();
  temporary_ = path_.parent_path() / ("." + path_.filename().string() + ".partial");
  remove_tree(temporary_);
  make_folders(temporary_);
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void NewFolder::publish() {
  publish_folder(temporary_, path_);
  temporary_.clear();
}

void sync_folder(const fs::path& folder) {
  const Descriptor descriptor(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (descriptor.get() < 0) throw_file_error("cannot open the folder", folder, errno);
  // EINVAL: the file system (some network ones) has no sync of folders.
  if (::fsync(descriptor.get()) != 0 && errno != EINVAL)
    throw_file_error("cannot sync the folder", folder, errno);
}

int remove_stale_temporaries(const fs::path& folder) {
  int removed = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(folder, error)) {
    const std::string name = entry.path().filename().string();
    const size_t mark = name.find(kTemporaryMark);
    if (name.empty() || name[0] != '.' || mark == std::string::npos) continue;
    // A living writer holds the lock (process numbers would mislead: containers reuse them).
    const Descriptor file(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0 || ::flock(file.get(), LOCK_EX | LOCK_NB) != 0) continue;
    if (fs::remove(entry.path(), error)) ++removed;
  }
  return removed;
}

int64_t free_bytes(const fs::path& path) {
  std::error_code ignored;
  fs::path existing = path;
  while (!existing.empty() && !fs::exists(existing, ignored)) {
    if (existing == existing.parent_path()) break;
    existing = existing.parent_path();
  }
  if (existing.empty()) existing = ".";
  struct statvfs info {};
  if (::statvfs(existing.c_str(), &info) != 0)
    throw_file_error("cannot ask for free space of", existing, errno);
  return static_cast<int64_t>(info.f_bavail) * static_cast<int64_t>(info.f_frsize);
}

ScopedDiskLimit::ScopedDiskLimit(int64_t num_bytes) {
  g_disk_left = num_bytes;
}

ScopedDiskLimit::~ScopedDiskLimit() {
  g_disk_left = kNoLimit;
}

}  // namespace moebius
