#include "parallel/token_split.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "base/check.h"

namespace moebius::parallel {
namespace {

TokenSplit::Chunk common(const TokenSplit::Chunk& a, const TokenSplit::Chunk& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max(begin, std::min(a.end, b.end))};
}

// Pieces of one document that follow each other and hide nothing become one: those of the same queries whose
// keys are neighbours, then those of the same keys whose queries are.
void join_whole(ops::AttentionPieces& pieces, size_t from) {
  const auto is_whole = [](const ops::AttentionPiece& piece) {
    // A token that sees itself alone stays a triangle: its neighbours are.
    return piece.first_seen >= piece.num_keys() && piece.first_seen > 1;
  };
  const auto join = [&](const auto& joins) {
    for (size_t i = from; i < pieces.size(); ++i)
      for (size_t j = pieces.size() - 1; j > i; --j) {
        ops::AttentionPiece &a = pieces[i], &b = pieces[j];
        if (!is_whole(a) || !is_whole(b) || !joins(a, b)) continue;
        a.query_end = b.query_end;
        a.key_end = b.key_end;
        a.first_seen = a.num_keys();
        pieces.erase(pieces.begin() + static_cast<ptrdiff_t>(j));
      }
  };
  join([](const auto& a, const auto& b) {
    return a.query_begin == b.query_begin && a.query_end == b.query_end && a.key_end == b.key_begin;
  });
  join([](const auto& a, const auto& b) {
    return a.key_begin == b.key_begin && a.key_end == b.key_end && a.query_end == b.query_begin;
  });
}

}  // namespace

TokenSplit::TokenSplit(int64_t length, int ranks) : length_(length), ranks_(ranks) {
  MOEBIUS_CHECK(length >= 0 && ranks >= 1, length, " tokens over ", ranks, " ranks");
}

std::array<TokenSplit::Chunk, 2> TokenSplit::chunks(int rank) const {
  const int64_t all = 2 * static_cast<int64_t>(ranks_);
  const auto border = [&](int64_t i) { return i * length_ / all; };
  const auto chunk = [&](int64_t i) { return Chunk{border(i), border(i + 1)}; };
  return {chunk(rank), chunk(all - 1 - rank)};
}

int64_t TokenSplit::tokens(int rank) const {
  const auto [first, second] = chunks(rank);
  return first.size() + second.size();
}

int64_t TokenSplit::row_of(int rank, int which, int64_t sequence, int64_t token) const {
  const std::array<Chunk, 2> own = chunks(rank);
  const int64_t before = which == 0 ? 0 : own[0].size();
  return sequence * tokens(rank) + before + token - own[static_cast<size_t>(which)].begin;
}

ops::AttentionPieces TokenSplit::pieces(const std::vector<int32_t>& documents, int rank, int keys,
                                        int64_t window) const {
  const std::array<Chunk, 2> query_chunks = chunks(rank), key_chunks = chunks(keys);
  ops::AttentionPieces pieces;
  for (size_t i = 0; i + 1 < documents.size(); ++i) {
    if (documents[i] == documents[i + 1]) continue;
    const int64_t sequence = documents[i] / length_, first = sequence * length_;
    const Chunk document{documents[i] - first, documents[i + 1] - first};
    MOEBIUS_CHECK_LE(document.end, length_, "document ", i, " goes beyond its sequence");
    const size_t from = pieces.size();
    for (int q = 0; q < 2; ++q)
      for (int k = 0; k < 2; ++k) {
        const Chunk queries = common(document, query_chunks[static_cast<size_t>(q)]),
                    seen = common(document, key_chunks[static_cast<size_t>(k)]);
        if (queries.size() == 0 || seen.size() == 0 || seen.begin >= queries.end) continue;
        if (window > 0 && seen.end <= queries.begin - window + 1) continue;
        ops::AttentionPiece piece{};
        piece.query_begin = row_of(rank, q, sequence, queries.begin);
        piece.query_end = piece.query_begin + queries.size();
        piece.key_begin = row_of(keys, k, sequence, seen.begin);
        piece.key_end = piece.key_begin + seen.size();
        piece.first_seen = queries.begin - seen.begin + 1;
        piece.group = static_cast<int64_t>(i);
        pieces.push_back(piece);
      }
    if (window == 0) join_whole(pieces, from);
  }
  return pieces;
}

at::Tensor rows_of_rank(const at::Tensor& whole, const TokenSplit& split, int64_t length, int rank) {
  MOEBIUS_CHECK(length > 0 && whole.size(0) % length == 0, whole.size(0), " rows of sequences of ", length);
  const at::Tensor by_sequence = whole.unflatten(0, {whole.size(0) / length, length});
  const auto [first, second] = split.chunks(rank);
  return at::cat({by_sequence.narrow(1, first.begin, first.size()),
                  by_sequence.narrow(1, second.begin, second.size())},
                 1)
      .flatten(0, 1);
}

}  // namespace moebius::parallel
