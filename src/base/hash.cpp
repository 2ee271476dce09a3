#include "base/hash.h"

#include <xxhash.h>

#include <algorithm>
#include <new>

#include "base/check.h"
#include "base/file.h"

namespace moebius {
namespace {

XXH3_state_t* as_state(void* state) {
  return static_cast<XXH3_state_t*>(state);
}

}  // namespace

uint64_t hash64(const void* data, size_t num_bytes) {
  return XXH3_64bits(data, num_bytes);
}

uint64_t hash_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  file.advise(MappedFile::Access::kSequential);
  return hash64(file.bytes());
}

std::string hash_hex(uint64_t value) {
  std::string text(16, '0');
  for (size_t i = 16; i-- > 0; value >>= 4) text[i] = "0123456789abcdef"[value & 15];
  return text;
}

Hasher::Hasher() : state_(XXH3_createState()) {
  if (!state_) throw std::bad_alloc();
  reset();
}

void Hasher::Free::operator()(void* state) const {
  XXH3_freeState(as_state(state));
}

void Hasher::update(const void* data, size_t num_bytes) {
  if (num_bytes > 0) XXH3_64bits_update(as_state(state_.get()), data, num_bytes);
}

uint64_t Hasher::digest() const {
  return XXH3_64bits_digest(as_state(state_.get()));
}

void Hasher::reset() {
  XXH3_64bits_reset(as_state(state_.get()));
}

}  // namespace moebius
