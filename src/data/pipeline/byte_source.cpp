#include "data/pipeline/byte_source.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>

#include "base/concat.h"

namespace moebius::data {
namespace {

constexpr std::string_view kGzipMagic = "\x1F\x8B";
constexpr std::string_view kZstdMagic = "\x28\xB5\x2F\xFD";

class PlainSource : public ByteSource {
 public:
  explicit PlainSource(std::string_view bytes) : bytes_(bytes) {}
  size_t read(char* out, size_t size) override {
    const size_t count = std::min(size, bytes_.size() - at_);
    if (count > 0) std::memcpy(out, bytes_.data() + at_, count);
    at_ += count;
    return count;
  }
  size_t position() const override { return at_; }

 private:
  std::string_view bytes_;
  size_t at_ = 0;
};

// What gzip and zstd share: a call gives what it can; damage is reported when nothing came before it.
class CompressedSource : public ByteSource {
 public:
  explicit CompressedSource(std::string_view bytes) : bytes_(bytes) {}
  size_t position() const override { return at_; }
  size_t read(char* out, size_t size) override {
    size_t done = 0;
    while (done < size && problem_.empty()) {
      if (between_ && at_ == bytes_.size() && at_ > 0) break;
      done += step(out + done, size - done);
    }
    if (done == 0 && !problem_.empty() && size > 0) throw DamagedInput(problem_);
    return done;
  }

 protected:
  // Decompresses some; sets between_ after the end of a member, problem_ where it cannot go on.
  virtual size_t step(char* out, size_t size) = 0;
  void damaged(const char* kind, const char* reason) {
    problem_ = concat("damaged ", kind, " data at byte ", at_, " (", reason, ")");
  }

  std::string_view bytes_;
  size_t at_ = 0;
  bool between_ = true;  // no member is open
  std::string problem_;
};

class GzipSource final : public CompressedSource {
 public:
  explicit GzipSource(std::string_view bytes) : CompressedSource(bytes) {
    if (::inflateInit2(&stream_, 15 + 16) != Z_OK) throw std::bad_alloc();
  }
  ~GzipSource() override { ::inflateEnd(&stream_); }

 private:
  size_t step(char* out, size_t size) override {
    constexpr size_t kMost = std::numeric_limits<uInt>::max();
    const auto input = static_cast<uInt>(std::min(bytes_.size() - at_, kMost));
    const auto room = static_cast<uInt>(std::min(size, kMost));
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes_.data() + at_));
    stream_.avail_in = input;
    stream_.next_out = reinterpret_cast<Bytef*>(out);
    stream_.avail_out = room;
    between_ = false;
    const int status = ::inflate(&stream_, Z_NO_FLUSH);
    at_ += input - stream_.avail_in;
    const size_t made = room - stream_.avail_out;
    if (status == Z_STREAM_END) {
      between_ = true;
      ::inflateReset(&stream_);
    } else if (status == Z_MEM_ERROR) {
      throw std::bad_alloc();
    } else if (status == Z_BUF_ERROR || (status == Z_OK && made == 0 && at_ == bytes_.size())) {
      damaged("gzip", "the file is cut off");
    } else if (status != Z_OK) {
      damaged("gzip", stream_.msg != nullptr ? stream_.msg : "not gzip");
    }
    return made;
  }

  z_stream stream_{};
};

class ZstdSource final : public CompressedSource {
 public:
  explicit ZstdSource(std::string_view bytes) : CompressedSource(bytes), stream_(ZSTD_createDStream()) {
    if (!stream_) throw std::bad_alloc();
    // Frames with long windows (zstd --long) are read too.
    ZSTD_DCtx_setParameter(stream_.get(), ZSTD_d_windowLogMax, sizeof(size_t) == 8 ? 31 : 30);
  }

 private:
  size_t step(char* out, size_t size) override {
    ZSTD_inBuffer input{bytes_.data() + at_, bytes_.size() - at_, 0};
    ZSTD_outBuffer output{out, size, 0};
    between_ = false;
    const size_t status = ZSTD_decompressStream(stream_.get(), &output, &input);
    at_ += input.pos;
    if (ZSTD_isError(status)) {
      damaged("zstd", ZSTD_getErrorName(status));
    } else if (status == 0) {
      between_ = true;
    } else if (output.pos == 0 && at_ == bytes_.size()) {
      damaged("zstd", "the file is cut off");
    }
    return output.pos;
  }

  struct Free {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };
  std::unique_ptr<ZSTD_DStream, Free> stream_;
};

}  // namespace

Compression compression_of(std::string_view bytes, const std::filesystem::path& name) {
  if (bytes.starts_with(kGzipMagic)) return Compression::gzip;
  if (bytes.starts_with(kZstdMagic)) return Compression::zstd;
  const std::filesystem::path extension = name.extension();
  if (extension == ".gz") return Compression::gzip;
  return extension == ".zst" || extension == ".zstd" ? Compression::zstd : Compression::none;
}

std::unique_ptr<ByteSource> open_bytes(std::string_view bytes, Compression compression) {
  switch (compression) {
    case Compression::gzip:
      return std::make_unique<GzipSource>(bytes);
    case Compression::zstd:
      return std::make_unique<ZstdSource>(bytes);
    case Compression::none:
      break;
  }
  return std::make_unique<PlainSource>(bytes);
}

}  // namespace moebius::data
