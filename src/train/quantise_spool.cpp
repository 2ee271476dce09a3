#include "train/quantise_spool.h"

#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/file.h"
#include "base/log.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;

constexpr char kIdentity[] = "identity";
constexpr char kCodes[] = ".codes", kReport[] = ".json";

fs::path spool_of(const fs::path& run_dir) {
  fs::path path = fs::absolute(run_dir).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // a slash at the end
  return path.parent_path() / (path.filename().string() + ".quantising");
}

}  // namespace

QuantiseSpool::QuantiseSpool(const fs::path& run_dir, const std::string& identity)
    : folder_(spool_of(run_dir)) {
  make_folders(folder_);
  lock_.emplace(folder_);
  const fs::path held = folder_ / kIdentity;
  if (fs::exists(held) && read_file(held) == identity) {
    if (const int64_t count = num_held(); count > 0)
      log_info("going on with ", folder_.string(), ": ", count, " weight(s) are done");
    return;
  }
  if (fs::exists(held))
    log_warn(folder_.string(), " holds work on another checkpoint or scheme, which is removed");
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_))
    if (entry.path().extension() == kCodes || entry.path().extension() == kReport) remove_tree(entry.path());
  write_file_atomic(held, identity);
}

fs::path QuantiseSpool::file(const std::string& name, const char* ending) const {
  return folder_ / (name + ending);
}

// The report is written last.
bool QuantiseSpool::holds(const std::string& name) const {
  return fs::exists(file(name, kReport));
}

QuantisedWeight QuantiseSpool::report(const std::string& name) const {
  return quantised_weight_from(read_file(file(name, kReport)));
}

int64_t QuantiseSpool::num_held() const {
  int64_t count = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_))
    count += entry.path().extension() == kReport;
  return count;
}

void QuantiseSpool::keep(const QuantisedWeight& report,
                         const std::function<void(const ckpt::ByteSink&)>& emit) {
  AtomicFile codes(file(report.name, kCodes));
  emit([&](std::span<const std::byte> bytes) { codes.write(bytes); });
  codes.commit();
  write_file_atomic(file(report.name, kReport), to_json(report));
}

ckpt::PendingTensor QuantiseSpool::pending(const std::string& name, const ckpt::TensorSpec& spec,
                                           int64_t first) const {
  const std::optional<uint64_t> num_bytes = spec.num_bytes();
  MOEBIUS_CHECK(num_bytes, "size of ", spec.name);
  return {spec, [path = file(name, kCodes), first,
                 count = static_cast<size_t>(*num_bytes)](const ckpt::ByteSink& sink) {
            const MappedFile map(path);
            MOEBIUS_CHECK_LE(static_cast<size_t>(first) + count, map.size());
            sink(map.bytes().subspan(static_cast<size_t>(first), count));
          }};
}

void QuantiseSpool::remove() {
  remove_tree(folder_);
  lock_.reset();
}

std::string to_json(const QuantisedWeight& weight) {
  nlohmann::ordered_json entry;
  entry["name"] = weight.name;
  entry["dims"] = weight.dims;
  entry["range"] = weight.range;
  entry["smallest_range"] = weight.smallest_range;
  entry["clipped_share"] = weight.clipped_share;
  entry["relative_error"] = weight.relative_error;
  entry["outlier_share"] = weight.outlier_share;
  entry["peak_ratio"] = weight.peak_ratio;
  if (weight.input_rows > 0) {
    entry["input_rows"] = weight.input_rows;
    entry["input_range"] = weight.input_range;
    entry["input_peak_ratio"] = weight.input_peak_ratio;
    entry["input_error"] = weight.input_error;
  }
  return entry.dump();
}

QuantisedWeight quantised_weight_from(const std::string& json) {
  const auto entry = nlohmann::json::parse(json);
  QuantisedWeight weight;
  weight.name = entry.at("name");
  weight.dims = entry.at("dims").get<std::vector<int64_t>>();
  weight.range = entry.at("range");
  weight.smallest_range = entry.at("smallest_range");
  weight.clipped_share = entry.at("clipped_share");
  weight.relative_error = entry.at("relative_error");
  weight.outlier_share = entry.at("outlier_share");
  weight.peak_ratio = entry.at("peak_ratio");
  weight.input_rows = entry.value("input_rows", int64_t{0});
  weight.input_range = entry.value("input_range", 0.0);
  weight.input_peak_ratio = entry.value("input_peak_ratio", 0.0);
  weight.input_error = entry.value("input_error", 0.0);
  return weight;
}

}  // namespace moebius::train
