// How training batches are made of documents, as users write it: "window", "pad", "three-buckets",
// "buckets:8", "edges:127,256", "pack" or "balanced". docs/batching.md says what each does.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moebius::config {

enum class BatchingKind : uint8_t { window, pad, three_buckets, buckets, edges, pack, balanced };

struct Batching {
  BatchingKind kind = BatchingKind::window;
  int64_t num_buckets = 0;     // of buckets:N
  std::vector<int64_t> edges;  // of edges:A,B,... and three-buckets: the longest length of each but the last
};

// UserError that names `field`, the text and the way out.
Batching parse_batching(const std::string& text, const std::string& field);

}  // namespace moebius::config
