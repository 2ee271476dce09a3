#include "parallel/flat_bucket.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "base/integers.h"

namespace moebius::parallel {
namespace {

constexpr int64_t kFewestBuckets = 16, kLeastBucketBytes = int64_t{256} << 10;
constexpr int64_t kLargeParam = 4096, kLargeAlignment = 256, kSmallAlignment = 32;

}  // namespace

int64_t block_of(const nn::ParamSpec& spec) {
  constexpr std::string_view kPrefix = "layers.";
  if (!spec.name.starts_with(kPrefix)) return kOutsideBlocks;
  int64_t block = 0;
  const char* const begin = spec.name.data() + kPrefix.size();
  const auto [end, error] = std::from_chars(begin, spec.name.data() + spec.name.size(), block);
  MOEBIUS_CHECK(error == std::errc() && *end == '.', "parameter ", spec.name, " names no block");
  return block;
}

ShardPart part_of(const FlatBucket& bucket, const FlatEntry& entry, int rank) {
  const int64_t first = bucket.shard_size() * rank, last = first + bucket.shard_size();
  const int64_t begin = std::max(entry.offset, first), end = std::min(entry.offset + entry.size, last);
  if (begin >= end) return {0, 0, 0};
  return {begin - entry.offset, end - entry.offset, begin - first};
}

int64_t bucket_bytes_for(const nn::ParamTable& params, int64_t most_bytes) {
  int64_t all_bytes = 0;
  for (const nn::Param& param : params.params())
    if (!param.spec.is_buffer) all_bytes += static_cast<int64_t>(param.value.nbytes());
  return std::min(most_bytes, std::max(all_bytes / kFewestBuckets, kLeastBucketBytes));
}

std::vector<FlatBucket> make_buckets(nn::ParamTable& params, const DataAxes& axes, int64_t bucket_bytes,
                                     bool by_block, const std::function<bool(const nn::Param&)>& is_alone) {
  MOEBIUS_CHECK_GE(bucket_bytes, 1);
  // Buckets close in the order in which their last parameter comes up, which the sort below needs.
  struct Open {
    FlatBucket bucket;
    int64_t last = 0;
  };
  std::vector<Open> done;
  std::map<std::tuple<const DataAxis*, at::ScalarType>, Open> open;
  int64_t index = 0;
  for (auto param = params.params().rbegin(); param != params.params().rend(); ++param, ++index) {
    if (param->spec.is_buffer) continue;
    MOEBIUS_CHECK(param->value.defined(), "parameter ", param->spec.name, " has no memory");
    const DataAxis* const axis = param->spec.klass == nn::ParamClass::expert ? &axes.expert : &axes.dense;
    const at::ScalarType dtype = param->value.scalar_type();
    const int64_t size = param->value.numel();
    const int64_t block = by_block ? block_of(param->spec) : kOutsideBlocks;
    const auto item_bytes = static_cast<int64_t>(c10::elementSize(dtype));
    if (is_alone && is_alone(*param)) {
      FlatBucket alone{axis, dtype, param->value.device(), block, {}, size};
      alone.entries.push_back({&*param, 0, size});
      done.push_back({std::move(alone), index});
      continue;
    }
    Open& current = open[{axis, dtype}];
    FlatBucket& bucket = current.bucket;
    const bool fits = bucket.block == block && (bucket.size + size) * item_bytes <= bucket_bytes;
    if (!bucket.entries.empty() && !fits) done.push_back(std::exchange(current, {}));
    if (bucket.entries.empty()) bucket = {axis, dtype, param->value.device(), block, {}, 0};
    const int64_t offset = round_up(bucket.size, size >= kLargeParam ? kLargeAlignment : kSmallAlignment);
    bucket.entries.push_back({&*param, offset, size});
    bucket.size = offset + size;
    current.last = index;
  }
  for (auto& [key, current] : open)
    if (!current.bucket.entries.empty()) done.push_back(std::move(current));
  std::sort(done.begin(), done.end(), [](const Open& a, const Open& b) { return a.last < b.last; });
  std::vector<FlatBucket> buckets;
  for (Open& each : done) {
    each.bucket.size = round_up(each.bucket.size, kLargeAlignment * each.bucket.num_ranks());
    buckets.push_back(std::move(each.bucket));
  }
  return buckets;
}

}  // namespace moebius::parallel
