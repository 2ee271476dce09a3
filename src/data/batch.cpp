#include "data/batch.h"

#include <algorithm>

#include "base/check.h"

namespace moebius::data {

void Batch::clear() {
  num_sequences = sequence_length = max_seqlen = num_targets = target_bytes = 0;
  tokens.clear();
  targets.clear();
  positions.clear();
  cu_seqlens.assign(1, 0);
}

void Batch::add_sequence(std::span<const int32_t> text, int64_t length, std::span<const int64_t> borders) {
  const auto text_size = static_cast<int64_t>(text.size());
  MOEBIUS_CHECK(text_size == length || text_size == length + 1, "text ", text_size, ", length ", length);
  int64_t begin = 0;
  for (size_t i = 0; i <= borders.size() && begin < length; ++i) {
    const int64_t document_end = i < borders.size() ? borders[i] : text_size;
    const int64_t end = std::min(document_end, length);
    MOEBIUS_CHECK_LT(begin, end);
    for (int64_t t = begin; t < end; ++t) {
      tokens.push_back(text[t]);
      targets.push_back(t + 1 < document_end ? text[t + 1] : kNoTarget);
      positions.push_back(static_cast<int32_t>(t - begin));
    }
    num_targets += std::min(end, document_end - 1) - begin;
    cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(end - begin));
    max_seqlen = std::max(max_seqlen, end - begin);
    begin = end;
  }
  ++num_sequences;
  sequence_length = std::max(sequence_length, length);
}

void Batch::add_padding(int64_t count) {
  if (count <= 0) return;
  for (int64_t t = 0; t < count; ++t) {
    tokens.push_back(0);
    targets.push_back(kNoTarget);
    positions.push_back(static_cast<int32_t>(t));
  }
  cu_seqlens.push_back(cu_seqlens.back() + static_cast<int32_t>(count));
  max_seqlen = std::max(max_seqlen, count);
}

}  // namespace moebius::data
