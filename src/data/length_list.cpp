#include "data/length_list.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/text_file.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxLength = int64_t{1} << 40;

class LengthParser {
 public:
  explicit LengthParser(const fs::path& file) : file_(file) {}

  void line(std::string_view text) {
    ++number_;
    text = trimmed(text);
    if (text.empty()) return;
    int64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error == std::errc::result_out_of_range || (error == std::errc() && value > kMaxLength)) {
      refuse(text, concat("is more than ", kMaxLength, " tokens"));
    }
    if (error != std::errc() || end != text.data() + text.size()) refuse(text, "is not a whole number");
    if (value < 0) refuse(text, "is negative");
    lengths.push_back(value);
  }

  std::vector<int64_t> lengths;

 private:
  [[noreturn]] void refuse(std::string_view text, const std::string& why) const {
    throw_user_error(file_.string(), ":", number_, ": ", shown_text(text), " ", why,
                     "; a list of lengths has one number of tokens per line");
  }

  const fs::path& file_;
  int64_t number_ = 0;
};

}  // namespace

std::vector<int64_t> read_lengths(const fs::path& file) {
  LengthParser parser(file);
  std::string rest;  // of a line that a piece cut
  read_text_pieces(file, "list of lengths", "a file of numbers, one per line", [&](std::string_view text) {
    for (size_t end; (end = text.find('\n')) != std::string_view::npos; text.remove_prefix(end + 1)) {
      rest += text.substr(0, end);
      parser.line(rest);
      rest.clear();
    }
    rest += text;
    // No number is that long: say so now, not after gigabytes.
    constexpr size_t kLongest = 1 << 16;
    if (rest.size() > kLongest) parser.line(rest);
  });
  parser.line(rest);
  if (parser.lengths.empty()) {
    throw_user_error("list of lengths ", file.string(),
                     ": holds no number; give one number of tokens per line");
  }
  return std::move(parser.lengths);
}

std::vector<int64_t> lengths_of(const Corpus& corpus) {
  std::vector<int64_t> lengths;
  lengths.reserve(corpus.num_documents());
  for (int64_t i = 0; i < corpus.num_documents(); ++i) lengths.push_back(corpus.document(i).size());
  return lengths;
}

LengthSummary summarize(const std::vector<int64_t>& lengths) {
  std::vector<int64_t> sorted;
  sorted.reserve(lengths.size());
  for (const int64_t length : lengths) {
    if (length > 0) sorted.push_back(length);
  }
  std::sort(sorted.begin(), sorted.end());
  LengthSummary summary;
  summary.documents = static_cast<int64_t>(lengths.size());
  summary.empty_documents = summary.documents - static_cast<int64_t>(sorted.size());
  if (sorted.empty()) return summary;
  // The smallest length that at least this share of the documents does not exceed.
  const auto quantile = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(sorted.size())));
    return sorted[std::max<size_t>(rank, 1) - 1];
  };
  summary.shortest = sorted.front();
  summary.median = quantile(0.5);
  summary.p90 = quantile(0.9);
  summary.p99 = quantile(0.99);
  summary.longest = sorted.back();
  const auto floor_power = [](int64_t length) {
    return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(length)));
  };
  for (int64_t from = floor_power(summary.shortest); from <= summary.longest; from *= 2) {
    summary.classes.push_back({from, 2 * from, 0, 0});
  }
  const int first = std::countr_zero(static_cast<uint64_t>(summary.classes.front().from));
  for (const int64_t length : sorted) {
    LengthClass& each = summary.classes[std::bit_width(static_cast<uint64_t>(length)) - 1 - first];
    ++each.documents;
    each.tokens += length;
    summary.tokens += length;
  }
  return summary;
}

}  // namespace moebius::data
