#include "ckpt/writer.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <future>
#include <map>
#include <numeric>
#include <sstream>
#include <system_error>
#include <thread>
#include <tuple>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/units.h"
#include "ckpt/folder.h"
#include "ckpt/manifest.h"
#include "ckpt/text.h"

namespace moebius::ckpt {
namespace {

namespace fs = std::filesystem;

// One file to be written, and where its tensors come from.
struct PlannedShard {
  std::string file;
  int writer;
  SafetensorsLayout layout;
  std::vector<const PendingTensor*> tensors;  // in file order
};

struct Plan {
  Manifest manifest;  // checksums still missing
  std::vector<PlannedShard> shards;
  uint64_t num_bytes = 0;
};

void check_group_name(const std::string& name) {
  const bool good = !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
  });
  MOEBIUS_CHECK(good, "group name ", in_quotes(name), " is not made of a-z, 0-9 and '_'");
}

// Cuts the tensors of a group, by writer and name, into runs of one writer of at most `shard_bytes`.
std::vector<std::vector<const PendingTensor*>> cut(const PendingGroup& group, int64_t shard_bytes) {
  std::vector<const PendingTensor*> sorted;
  for (const PendingTensor& tensor : group.tensors) sorted.push_back(&tensor);
  std::sort(sorted.begin(), sorted.end(), [](const PendingTensor* a, const PendingTensor* b) {
    return std::tie(a->writer, a->spec.name) < std::tie(b->writer, b->spec.name);
  });
  std::vector<std::vector<const PendingTensor*>> shards;
  uint64_t filled = 0;
  for (const PendingTensor* tensor : sorted) {
    const uint64_t num_bytes = tensor->spec.num_bytes().value_or(0);
    if (shards.empty() || shards.back().back()->writer != tensor->writer ||
        filled + num_bytes > static_cast<uint64_t>(shard_bytes)) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(tensor);
    filled += num_bytes;
  }
  return shards;
}

Plan make_plan(const CheckpointMeta& meta, std::span<const PendingGroup> groups, const SaveOptions& options) {
  MOEBIUS_CHECK_GE(meta.step, 0);
  MOEBIUS_CHECK_GE(options.keep, 1);
  MOEBIUS_CHECK_GE(options.shard_bytes, 1);
  Plan plan;
  plan.manifest.step = meta.step;
  plan.manifest.config = meta.config;
  plan.manifest.state_json = meta.state_json;
  std::vector<size_t> order(groups.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return groups[a].name < groups[b].name; });
  for (const size_t g : order) {
    const PendingGroup& group = groups[g];
    check_group_name(group.name);
    MOEBIUS_CHECK(plan.manifest.groups.empty() || plan.manifest.groups.back().name != group.name,
                  "two groups are named ", group.name);
    ManifestGroup& entry = plan.manifest.groups.emplace_back();
    entry.name = group.name;
    const auto shards = cut(group, options.shard_bytes);
    for (size_t i = 0; i < shards.size(); ++i) {
      char number[64];
      std::snprintf(number, sizeof number, "-%05zu-of-%05zu.safetensors", i + 1, shards.size());
      PlannedShard shard{group.name + number, shards[i].front()->writer, {}, {}};
      std::vector<TensorSpec> specs;
      for (const PendingTensor* tensor : shards[i]) specs.push_back(tensor->spec);
      shard.layout = layout_safetensors(specs, {{"format", "pt"}});
      for (const size_t source : shard.layout.source) shard.tensors.push_back(shards[i][source]);
      for (const TensorEntry& tensor : shard.layout.tensors) {
        entry.tensors.push_back({tensor.spec, plan.manifest.shards.size(), tensor.begin});
      }
      plan.num_bytes += shard.layout.file_bytes;
      plan.manifest.shards.push_back({shard.file, group.name, shard.layout.file_bytes, 0});
      plan.shards.push_back(std::move(shard));
    }
    std::sort(entry.tensors.begin(), entry.tensors.end(),
              [](const ManifestTensor& a, const ManifestTensor& b) { return a.spec.name < b.spec.name; });
    for (size_t i = 1; i < entry.tensors.size(); ++i) {
      MOEBIUS_CHECK(entry.tensors[i - 1].spec.name != entry.tensors[i].spec.name, "two tensors of group ",
                    group.name, " are named ", in_quotes(entry.tensors[i].spec.name));
    }
  }
  return plan;
}

// Prepares each tensor while the one before it is written. Both know the same order.
class Ahead {
 public:
  Ahead(const std::vector<PlannedShard>& shards, int writer) {
    for (const PlannedShard& shard : shards) {
      if (shard.writer != writer) continue;
      for (const PendingTensor* tensor : shard.tensors) tensors_.push_back(tensor);
    }
    begin_next();
  }

  // Returns when the next tensor is ready; the one behind it is begun.
  void next() {
    if (preparing_.valid()) preparing_.get();
    begin_next();
  }

 private:
  void begin_next() {
    if (begun_ == tensors_.size()) return;
    const PendingTensor* const tensor = tensors_[begun_++];
    if (tensor->prepare) preparing_ = std::async(std::launch::async, tensor->prepare);
  }

  std::vector<const PendingTensor*> tensors_;
  size_t begun_ = 0;
  std::future<void> preparing_;  // its destructor waits
};

// Returns the checksum of the whole file.
uint64_t write_shard(const fs::path& path, const PlannedShard& shard, Ahead& ahead) {
  AtomicFile file(path, static_cast<int64_t>(shard.layout.file_bytes));
  Hasher hasher;
  std::string gathered;  // small pieces travel together
  constexpr size_t kGatherBytes = size_t{1} << 18, kPartBytes = size_t{1} << 20;
  const auto flush = [&] {
    file.write(gathered);
    gathered.clear();
  };
  const auto put = [&](std::span<const std::byte> bytes) {
    hasher.update(bytes);
    if (gathered.size() + bytes.size() > kGatherBytes) flush();
    if (bytes.size() >= kGatherBytes) {
      file.write(bytes);
    } else {
      gathered.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    }
  };
  // Large pieces in parts that are still in the cache when, behind the checksum, they are written.
  const ByteSink sink = [&](std::span<const std::byte> bytes) {
    for (; bytes.size() > kPartBytes; bytes = bytes.subspan(kPartBytes)) put(bytes.first(kPartBytes));
    put(bytes);
  };
  sink(std::as_bytes(std::span(shard.layout.head)));
  for (size_t i = 0; i < shard.tensors.size(); ++i) {
    uint64_t emitted = 0;
    ahead.next();
    shard.tensors[i]->emit([&](std::span<const std::byte> bytes) {
      emitted += bytes.size();
      sink(bytes);
    });
    MOEBIUS_CHECK_EQ(emitted, shard.layout.tensors[i].num_bytes, "bytes of tensor ",
                     shard.tensors[i]->spec.name);
  }
  flush();
  file.commit();
  return hasher.digest();
}

// "The previous checkpoint '…' is intact."
std::string survivor(const fs::path& run_dir) {
  const std::vector<int64_t> steps = list_steps(run_dir);
  if (steps.empty()) return "There is no earlier checkpoint in this run.";
  return concat("The previous checkpoint '", step_dir(run_dir, steps.front()).string(), "' is intact.");
}

// Removes the unfinished folder unless it was published.
struct Unfinished {
  fs::path path;
  ~Unfinished() {
    std::error_code ignored;
    if (!path.empty()) fs::remove_all(path, ignored);
  }
};

// What a process leaves in the unfinished folder when it is through: a line for each of its shards with file
// name and checksum, or kFailed and why.
constexpr std::string_view kFailed = "failed: ";
fs::path record_of(const fs::path& folder, int writer) {
  return folder / concat(".writer-", writer);
}

void write_shards(const fs::path& folder, Plan& plan, int writer) {
  Ahead ahead(plan.shards, writer);
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    if (plan.shards[i].writer == writer)
      plan.manifest.shards[i].xxh3 = write_shard(folder / plan.shards[i].file, plan.shards[i], ahead);
  }
}

void leave_record(const fs::path& folder, const Plan& plan, int writer) {
  std::string text;
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    if (plan.shards[i].writer == writer)
      text += concat(plan.shards[i].file, " ", hash_hex(plan.manifest.shards[i].xxh3), "\n");
  }
  write_file_atomic(record_of(folder, writer), text);
}

// Waits until the others are through, and fills in their checksums.
void take_records(const fs::path& folder, Plan& plan, const Writers& writers) {
  constexpr auto kPause = std::chrono::milliseconds(20);
  const double deadline = steady_seconds() + writers.timeout_s;
  std::map<std::string, uint64_t> checksums;
  for (int writer = 1; writer < writers.count; ++writer) {
    const fs::path record = record_of(folder, writer);
    std::error_code error;
    while (!fs::exists(record, error)) {
      if (writers.gives_up != nullptr && *writers.gives_up)
        throw_user_error("the run ends before process ", writer, " has written its shards");
      if (steady_seconds() > deadline)
        throw_user_error("process ", writer, " has not written its shards within ", writers.timeout_s, " s");
      std::this_thread::sleep_for(kPause);
    }
    const std::string text = read_file(record);
    if (text.starts_with(kFailed))
      throw_user_error("process ", writer, " could not write its shards: ", text.substr(kFailed.size()));
    std::istringstream lines(text);
    std::string file, digits;
    while (lines >> file >> digits) checksums[file] = std::stoull(digits, nullptr, 16);
    fs::remove(record, error);
  }
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    if (plan.shards[i].writer == 0) continue;
    const auto found = checksums.find(plan.shards[i].file);
    MOEBIUS_CHECK(found != checksums.end(), "process ", plan.shards[i].writer, " did not write ",
                  plan.shards[i].file);
    plan.manifest.shards[i].xxh3 = found->second;
  }
}

}  // namespace

fs::path write_checkpoint(const fs::path& run_dir, const CheckpointMeta& meta,
                          std::span<const PendingGroup> groups, const SaveOptions& options) {
  return write_checkpoint(run_dir, meta, groups, options, {.attempt = std::to_string(::getpid())});
}

fs::path write_checkpoint(const fs::path& run_dir, const CheckpointMeta& meta,
                          std::span<const PendingGroup> groups, const SaveOptions& options,
                          const Writers& writers) {
  Plan plan = make_plan(meta, groups, options);
  const fs::path target = step_dir(run_dir, meta.step);
  const fs::path folder =
      checkpoints_dir(run_dir) / concat(".tmp-", target.filename().string().substr(5), "-", writers.attempt);
  const bool is_first = writers.rank == 0;
  // The first removes the folder when it is not published, whoever failed.
  Unfinished unfinished{is_first ? folder : fs::path()};
  std::string reason, failure;
  try {
    make_folders(checkpoints_dir(run_dir));
    if (is_first) {
      const int64_t free = free_bytes(checkpoints_dir(run_dir));
      if (plan.num_bytes > static_cast<uint64_t>(std::max<int64_t>(free, 0))) {
        throw_user_error("the disk is full: ", format_bytes(static_cast<int64_t>(plan.num_bytes)),
                         " needed, ", format_bytes(free), " free in '", checkpoints_dir(run_dir).string(),
                         "'; free some space, lower checkpoint.keep or choose another run folder");
      }
      if (writers.count == 1) remove_tree(folder);
    }
    make_folders(folder);
    write_shards(folder, plan, writers.rank);
    if (!is_first) {
      leave_record(folder, plan, writers.rank);
      return target;
    }
    take_records(folder, plan, writers);
    const std::string manifest = manifest_text(plan.manifest);
    if (manifest.size() > kMaxManifestBytes) {
      throw_user_error("its manifest would have ", format_bytes(static_cast<int64_t>(manifest.size())),
                       ", more than ", format_bytes(static_cast<int64_t>(kMaxManifestBytes)),
                       "; store less in the config and state");
    }
    write_file_atomic(folder / kManifestFile, manifest);
    publish_folder(folder, target);
    unfinished.path.clear();
  } catch (const UserError& error) {
    reason = error.what();
    failure = concat("checkpoint of step ", meta.step, " (",
                     format_bytes(static_cast<int64_t>(plan.num_bytes)), ") was not saved: ", reason);
  } catch (const fs::filesystem_error& error) {
    reason = error.what();
    failure = concat("checkpoint of step ", meta.step, " was not saved: ", reason);
  }
  if (!failure.empty()) {
    try {
      if (!is_first) write_file_atomic(record_of(folder, writers.rank), concat(kFailed, reason));
    } catch (const std::exception&) {  // the first runs into its timeout
    }
    throw_user_error(failure, ". ", survivor(run_dir));
  }
  prune(run_dir, meta.step, options.keep);
  return target;
}

}  // namespace moebius::ckpt
