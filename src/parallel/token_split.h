// How the ranks of a context axis share the tokens of each sequence: arithmetic alone.
//
// A sequence is cut into 2n chunks of nearly one length, and rank r of n has chunks r and 2n - 1 - r, so that
// under a causal mask all ranks have about the same products to compute. (Zhu 2024, "ring-flash-attention",
// zigzag; the same cut in Megatron-Core and Llama 3: Grattafiori et al. 2024, "The Llama 3 Herd of Models",
// section 3.3.2.)
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "ops/attention_part.h"

namespace moebius::parallel {

class TokenSplit {
 public:
  // Of sequences of `length` tokens over `ranks` ranks.
  TokenSplit(int64_t length, int ranks);

  struct Chunk {
    int64_t begin, end;  // tokens of a sequence
    int64_t size() const { return end - begin; }
  };
  int ranks() const { return ranks_; }
  // In the order in which the rank holds them, that of the sequence.
  std::array<Chunk, 2> chunks(int rank) const;
  // Of each sequence. The same on all ranks where they divide the length.
  int64_t tokens(int rank) const;

  // What the queries of rank `rank` see of the keys of rank `keys`, both rows as the ranks hold them:
  // sequence after sequence, chunk after chunk. `documents`: borders in the whole batch, of which none but
  // its ends lies within a sequence's border. window: 0, or tokens that a query sees, itself included.
  ops::AttentionPieces pieces(const std::vector<int32_t>& documents, int rank, int keys,
                              int64_t window) const;

 private:
  // Rows of a rank that hold a part of a chunk of it.
  int64_t row_of(int rank, int which, int64_t sequence, int64_t token) const;

  int64_t length_;
  int ranks_;
};

// The ranks' shares of rows (B * length, ...) that are whole sequences one behind another.
at::Tensor rows_of_rank(const at::Tensor& whole, const TokenSplit& split, int64_t length, int rank);

}  // namespace moebius::parallel
