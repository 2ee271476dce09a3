#include "ckpt/checkpoint.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <set>
#include <system_error>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/parallel.h"
#include "ckpt/folder.h"
#include "ckpt/tensor_bytes.h"
#include "ckpt/text.h"

namespace moebius::ckpt {

namespace fs = std::filesystem;

struct Checkpoint::State {
  fs::path path;
  Manifest manifest;
  std::vector<MappedFile> shards;  // as in the manifest
};

namespace {

Manifest read_manifest(const fs::path& folder) {
  const fs::path path = folder / kManifestFile;
  std::error_code error;
  if (!fs::is_directory(folder, error))
    throw_user_error("checkpoint '", folder.string(), "' is not a folder");
  if (!fs::is_regular_file(path, error)) {
    throw_user_error(path.string(), ": missing; the folder is not a checkpoint, or not a complete one");
  }
  const MappedFile file(path);
  if (file.size() > kMaxManifestBytes) {
    throw_user_error(path.string(), ": ", file.size(), " bytes, expected at most ", kMaxManifestBytes,
                     " (not the manifest of a checkpoint)");
  }
  return parse_manifest(path.string(), file.text());
}

void check_sizes(const fs::path& folder, const Manifest& manifest) {
  for (const ManifestShard& shard : manifest.shards) {
    const fs::path path = folder / shard.file;
    std::error_code error;
    if (!fs::is_regular_file(path, error))
      throw_user_error(path.string(), ": missing, but the manifest lists it");
    const uint64_t found = fs::file_size(path, error);
    if (error) throw_user_error("cannot read '", path.string(), "': ", error.message());
    if (found != shard.num_bytes) {
      throw_user_error(path.string(), ": ", found, " bytes, expected ", shard.num_bytes,
                       found < shard.num_bytes ? " (truncated)" : " (something was added)");
    }
  }
}

void check_shard(const ManifestShard& shard, const MappedFile& file, Checkpoint::Verify verify) {
  const std::string path = file.path().string();
  if (file.size() != shard.num_bytes) {  // changed since its size was asked for
    throw_user_error(path, ": ", file.size(), " bytes, expected ", shard.num_bytes);
  }
  if (verify == Checkpoint::Verify::checksums) {
    const uint64_t found = hash64(file.bytes());
    if (found != shard.xxh3) {
      throw_user_error(path, ": checksum xxh3 is ", hash_hex(found), ", expected ", hash_hex(shard.xxh3),
                       " (edited or damaged after it was saved)");
    }
  }
}

// The header of each shard must say exactly what the manifest says of it.
void check_headers(const Manifest& manifest, const std::vector<MappedFile>& files) {
  std::vector<SafetensorsHeader> headers;
  std::vector<std::set<std::string_view>> listed(files.size());
  for (const MappedFile& file : files)
    headers.push_back(parse_safetensors(file.path().string(), file.bytes()));
  for (const ManifestGroup& group : manifest.groups) {
    for (const ManifestTensor& tensor : group.tensors) {
      const std::string path = files[tensor.shard].path().string();
      const TensorEntry* entry = headers[tensor.shard].find(tensor.spec.name);
      if (entry == nullptr) {
        throw_user_error(path, ": tensor ", in_quotes(tensor.spec.name),
                         " is missing, but the manifest lists it");
      }
      if (entry->spec.dtype != tensor.spec.dtype || entry->spec.shape != tensor.spec.shape ||
          entry->begin != tensor.offset) {
        throw_user_error(path, ": tensor ", in_quotes(tensor.spec.name), " is ",
                         dtype_name(entry->spec.dtype), " ", shape_text(entry->spec.shape), " at offset ",
                         entry->begin, ", but the manifest says ", dtype_name(tensor.spec.dtype), " ",
                         shape_text(tensor.spec.shape), " at ", tensor.offset);
      }
      listed[tensor.shard].insert(tensor.spec.name);
    }
  }
  for (size_t i = 0; i < files.size(); ++i) {
    for (const TensorEntry& entry : headers[i].tensors) {
      if (!listed[i].contains(entry.spec.name)) {
        throw_user_error(files[i].path().string(), ": tensor ", in_quotes(entry.spec.name),
                         " is not listed in the manifest");
      }
    }
  }
}

// Where the values of a wanted group lie, in the order of the wanted tensors; complaints go to `problems`.
std::vector<const ManifestTensor*> match_group(const Manifest& manifest, const TensorGroup& wanted,
                                               std::vector<std::string>& problems) {
  const auto group = std::find_if(manifest.groups.begin(), manifest.groups.end(),
                                  [&](const ManifestGroup& g) { return g.name == wanted.name; });
  if (group == manifest.groups.end()) {
    problems.push_back(concat("it has no group ", in_quotes(wanted.name)));
    return {};
  }
  std::vector<const ManifestTensor*> found;
  std::vector<std::string> missing, differing, names;
  for (const NamedTensor& named : wanted.tensors) {
    names.push_back(named.name);
    const auto at =
        std::lower_bound(group->tensors.begin(), group->tensors.end(), named.name,
                         [](const ManifestTensor& t, const std::string& n) { return t.spec.name < n; });
    if (at == group->tensors.end() || at->spec.name != named.name) {
      missing.push_back(named.name);
      continue;
    }
    const TensorSpec spec = spec_of(named.name, named.tensor);
    if (spec.shape != at->spec.shape || spec.dtype != at->spec.dtype) {
      differing.push_back(concat(in_quotes(named.name), " is ", dtype_name(at->spec.dtype), " ",
                                 shape_text(at->spec.shape), " there, but ", dtype_name(spec.dtype), " ",
                                 shape_text(spec.shape), " here"));
    }
    found.push_back(&*at);
  }
  std::sort(names.begin(), names.end());
  MOEBIUS_CHECK(std::adjacent_find(names.begin(), names.end()) == names.end(), "a name of group ",
                wanted.name, " repeats");
  std::vector<std::string> extra;
  for (const ManifestTensor& tensor : group->tensors) {
    if (!std::binary_search(names.begin(), names.end(), tensor.spec.name)) extra.push_back(tensor.spec.name);
  }
  const auto count = [](const std::vector<std::string>& list) {
    return list.size() == 1 ? std::string("1 tensor") : concat(list.size(), " tensors");
  };
  if (!missing.empty()) {
    problems.push_back(concat(count(missing), " of group ", in_quotes(wanted.name),
                              " missing there: ", names_text(missing)));
  }
  if (!extra.empty()) {
    problems.push_back(
        concat(count(extra), " of group ", in_quotes(wanted.name), " unknown here: ", names_text(extra)));
  }
  for (size_t i = 0; i < differing.size() && i < 3; ++i) problems.push_back(differing[i]);
  if (differing.size() > 3)
    problems.push_back(concat(differing.size() - 3, " more of another shape or dtype"));
  return found;
}

}  // namespace

fs::path save_checkpoint(const fs::path& run_dir, const CheckpointMeta& meta,
                         std::span<const TensorGroup> groups, const SaveOptions& options) {
  std::vector<PendingGroup> pending;
  for (const TensorGroup& group : groups) {
    PendingGroup& entry = pending.emplace_back();
    entry.name = group.name;
    for (const NamedTensor& named : group.tensors) {
      entry.tensors.push_back({spec_of(named.name, named.tensor),
                               [tensor = named.tensor](const ByteSink& sink) { emit_bytes(tensor, sink); }});
    }
  }
  return write_checkpoint(run_dir, meta, pending, options);
}

Checkpoint::Checkpoint(std::unique_ptr<State> state) : state_(std::move(state)) {}
Checkpoint::~Checkpoint() = default;
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;

Checkpoint Checkpoint::open(const fs::path& folder, Verify verify) {
  auto state = std::make_unique<State>();
  state->path = folder;
  state->manifest = read_manifest(folder);
  check_sizes(folder, state->manifest);
  const std::vector<ManifestShard>& shards = state->manifest.shards;
  for (const ManifestShard& shard : shards) state->shards.emplace_back(folder / shard.file);
  // The first broken shard by number is reported, whichever thread finds its own first.
  std::vector<std::string> errors(shards.size());
  parallel_tasks(static_cast<int64_t>(shards.size()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      try {
        check_shard(shards[at], state->shards[at], verify);
      } catch (const UserError& error) {
        errors[at] = error.what();
      }
    }
  });
  for (const std::string& error : errors) {
    if (!error.empty()) throw UserError(error);
  }
  check_headers(state->manifest, state->shards);
  return Checkpoint(std::move(state));
}

const fs::path& Checkpoint::path() const {
  return state_->path;
}
int64_t Checkpoint::step() const {
  return state_->manifest.step;
}
const std::string& Checkpoint::config() const {
  return state_->manifest.config;
}
const std::string& Checkpoint::state_json() const {
  return state_->manifest.state_json;
}
const Manifest& Checkpoint::manifest() const {
  return state_->manifest;
}

bool Checkpoint::has_group(std::string_view name) const {
  return std::any_of(state_->manifest.groups.begin(), state_->manifest.groups.end(),
                     [&](const ManifestGroup& group) { return group.name == name; });
}

std::vector<std::vector<const ManifestTensor*>> Checkpoint::match(std::span<const TensorGroup> groups) const {
  std::vector<std::string> problems;
  std::vector<std::vector<const ManifestTensor*>> sources;
  for (const TensorGroup& group : groups) sources.push_back(match_group(state_->manifest, group, problems));
  if (!problems.empty()) {
    std::string list;
    for (const std::string& problem : problems) list += (list.empty() ? "" : "; ") + problem;
    throw_user_error("checkpoint '", path().string(), "' does not fit this model: ", list,
                     ". Use the configuration that it was saved with (stored in its ", kManifestFile,
                     "), or start another run folder");
  }
  return sources;
}

void Checkpoint::load(std::span<const TensorGroup> groups) const {
  const auto sources = match(groups);
  for (size_t g = 0; g < groups.size(); ++g) {
    for (size_t i = 0; i < groups[g].tensors.size(); ++i) {
      const ManifestTensor& source = *sources[g][i];
      assign_bytes(groups[g].tensors[i].tensor, state_->shards[source.shard].bytes().subspan(
                                                    source.offset, source.spec.num_bytes().value()));
    }
  }
}

std::vector<at::Tensor> Checkpoint::mapped(const TensorGroup& group) const {
  const auto sources = match({&group, 1});
  std::vector<at::Tensor> tensors;
  for (const ManifestTensor* const source : sources.front()) {
    const auto bytes =
        state_->shards[source->shard].bytes().subspan(source->offset, source->spec.num_bytes().value());
    // from_blob has no const form.
    tensors.push_back(at::from_blob(
        const_cast<std::byte*>(bytes.data()), source->spec.shape, [state = state_](void*) {},
        at::TensorOptions().dtype(scalar_type_of(source->spec.dtype))));
  }
  return tensors;
}

fs::path merge_shards(const Checkpoint& checkpoint, const fs::path& run_dir) {
  const Manifest& manifest = checkpoint.manifest();
  std::vector<TensorGroup> groups;
  for (const ManifestGroup& saved : manifest.groups) {
    TensorGroup& group = groups.emplace_back();
    group.name = saved.name;
    for (const ManifestTensor& tensor : saved.tensors)
      group.tensors.push_back(
          {tensor.spec.name,
           at::empty(tensor.spec.shape,
                     at::TensorOptions().dtype(scalar_type_of(tensor.spec.dtype)).device(at::kMeta))});
    const std::vector<at::Tensor> values = checkpoint.mapped(group);
    for (size_t i = 0; i < values.size(); ++i) group.tensors[i].tensor = values[i];
  }
  const auto num_others = static_cast<int64_t>(list_steps(run_dir).size());
  return save_checkpoint(run_dir, {manifest.step, manifest.config, manifest.state_json}, groups,
                         {.keep = num_others + 1});
}

namespace {

Checkpoint open_step(const fs::path& run_dir, int64_t step) {
  const fs::path folder = step_dir(run_dir, step);
  Checkpoint checkpoint = Checkpoint::open(folder);
  if (checkpoint.step() != step) {
    throw_user_error((folder / kManifestFile).string(), ": step ", checkpoint.step(),
                     ", but the folder is named for step ", step, " (copied from elsewhere?)");
  }
  return checkpoint;
}

bool is_good(const fs::path& run_dir, int64_t step) {
  try {
    open_step(run_dir, step);
    return true;
  } catch (const UserError&) {
    return false;
  }
}

[[noreturn]] void refuse_newest(const fs::path& run_dir, const std::vector<int64_t>& steps,
                                const UserError& reason) {
  const std::string newest = step_dir(run_dir, steps.front()).string();
  const std::string refused = concat("checkpoint '", newest, "' is refused: ", reason.what());
  for (size_t i = 1; i < steps.size(); ++i) {
    if (!is_good(run_dir, steps[i])) continue;
    throw_user_error(
        refused, ". The previous good checkpoint is '", step_dir(run_dir, steps[i]).string(),
        "': move or remove the broken folder, then run the same command again to go on from there");
  }
  throw_user_error(refused, ". There is no other good checkpoint in '", checkpoints_dir(run_dir).string(),
                   "': restore it from a copy, or start again with --overwrite");
}

}  // namespace

std::optional<Checkpoint> find_latest(const fs::path& run_dir) {
  constexpr int kAttempts = 10;
  for (int attempt = 1;; ++attempt) {
    const std::vector<int64_t> steps = list_steps(run_dir);
    if (steps.empty()) return std::nullopt;
    try {
      return open_step(run_dir, steps.front());
    } catch (const UserError& error) {
      // A training process may have replaced the list meanwhile; then look again.
      const std::vector<int64_t> now = list_steps(run_dir);
      if (attempt == kAttempts || (!now.empty() && now.front() == steps.front()))
        refuse_newest(run_dir, steps, error);
    }
  }
}

Checkpoint open_run_or_checkpoint(const fs::path& path) {
  std::error_code error;
  if (!fs::exists(path, error))
    throw_user_error("'", path.string(), "' does not exist; name a run or a checkpoint folder");
  if (fs::exists(path / kManifestFile, error) || step_of(path.filename().string()))
    return Checkpoint::open(path);
  std::optional<Checkpoint> latest = find_latest(path);
  if (!latest) {
    throw_user_error("'", path.string(), "' holds no checkpoint (neither ", kManifestFile,
                     " nor checkpoints/step-…); name a run or a checkpoint folder");
  }
  return std::move(*latest);
}

}  // namespace moebius::ckpt
