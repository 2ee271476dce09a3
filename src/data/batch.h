// One micro-batch: flat tokens of several documents.
#pragma once

#include <cstdint>
#include <new>
#include <span>
#include <vector>

namespace moebius::data {

// Memory of vectors that are wrapped into tensors: aligned to a cache line.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}  // NOLINT: allocators convert
  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kAlignment)); }
  void deallocate(T* p, size_t n) { ::operator delete(p, n * sizeof(T), kAlignment); }
  bool operator==(const AlignedAllocator&) const { return true; }
};
template <class T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

inline constexpr int64_t kNoTarget = -100;

// T = num_sequences * sequence_length tokens. Whoever fills a batch clears it first; capacity is kept, so a
// reused batch allocates nothing.
struct Batch {
  int64_t step = 0;
  int64_t micro = 0;  // which micro-batch of the step
  int64_t num_sequences = 0;
  int64_t sequence_length = 0;

  AlignedVector<int64_t> tokens;     // (T)
  AlignedVector<int64_t> targets;    // (T) the next token of the same document, or kNoTarget
  AlignedVector<int32_t> positions;  // (T) from 0 at the start of each document in each sequence
  std::vector<int32_t> cu_seqlens;   // (N + 1) borders of the documents; a sequence border always is one
  int64_t max_seqlen = 0;            // longest document part
  int64_t num_targets = 0;           // targets that are not kNoTarget
  int64_t target_bytes =
      0;  // text bytes that these targets stand for; 0 where the source does not count them

  int64_t num_tokens() const { return static_cast<int64_t>(tokens.size()); }

  void clear();
  // Appends one sequence of `length` inputs. `text` holds its tokens plus the one after them when there is
  // one (size length or length + 1); `borders` are the offsets in it at which documents begin, without 0.
  void add_sequence(std::span<const int32_t> text, int64_t length, std::span<const int64_t> borders);
  // Appends `count` tokens of padding as a document of its own: token 0, no targets.
  void add_padding(int64_t count);
};

}  // namespace moebius::data
