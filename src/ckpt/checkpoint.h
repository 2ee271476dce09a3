// Checkpoints of named tensors: save, find, verify, load. The format is docs/formats/checkpoint.md.
//
//   std::vector<TensorGroup> groups = {{"model", {{"embedding", weight}, …}}, {"optimizer", {…}}};
//   save_checkpoint(run_dir, {.step = 200, .config = toml, .state_json = state.dump()}, groups, {.keep = 2});
//   if (std::optional<Checkpoint> last = find_latest(run_dir)) last->load(groups);
//
// A group's tensors may be any module's: names, shapes and dtypes are all that is known of them. Tensors lie
// on the CPU or on a device; they are read and written by tensor operators only. The round trip is exact bit
// for bit.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ckpt/manifest.h"
#include "ckpt/writer.h"

namespace moebius::ckpt {

struct NamedTensor {
  std::string name;
  at::Tensor tensor;
};

struct TensorGroup {
  std::string name;  // "model", "optimizer"
  std::vector<NamedTensor> tensors;
};

// Writes a checkpoint and returns its folder; see write_checkpoint (writer.h) for what is guaranteed and
// thrown. Device tensors pass through host memory one at a time. Blocks until the files are on the disk.
std::filesystem::path save_checkpoint(const std::filesystem::path& run_dir, const CheckpointMeta& meta,
                                      std::span<const TensorGroup> groups, const SaveOptions& options);

// A complete checkpoint, opened and verified. Holds memory maps: it stays readable when the folder is removed
// meanwhile. Movable; const members may be called from several threads.
class Checkpoint {
 public:
  enum class Verify : uint8_t {
    checksums,  // sizes, headers and every byte (several GB/s from the page cache)
    headers     // sizes and headers only
  };

  // UserError naming the file and the reason when anything is missing, damaged, edited or foreign.
  static Checkpoint open(const std::filesystem::path& folder, Verify verify = Verify::checksums);

  ~Checkpoint();
  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;

  const std::filesystem::path& path() const;
  int64_t step() const;
  const std::string& config() const;      // as given to save
  const std::string& state_json() const;  // a JSON object
  const Manifest& manifest() const;
  bool has_group(std::string_view name) const;

  // Copies the saved values into the given tensors, in place. The names of each group must be exactly the
  // saved ones, with the same shapes and dtypes; otherwise UserError lists what differs and no tensor has
  // been changed. Saved groups that are not asked for are left alone. Autograd does not see the copies.
  void load(std::span<const TensorGroup> groups) const;

  // The saved values of a group as CPU tensors on the memory maps, in the order of its tensors, which are
  // looked at as by load(). Only to be read: a write ends the process. They stay valid behind this object's
  // end.
  std::vector<at::Tensor> mapped(const TensorGroup& group) const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  // Where the values of each group lie; UserError for what does not fit.
  std::vector<std::vector<const ManifestTensor*>> match(std::span<const TensorGroup> groups) const;
  std::shared_ptr<const State> state_;
};

// The newest checkpoint of a run, verified; nullopt when the run has none. When the newest is broken:
// UserError naming its file and the reason, and the newest earlier one that is intact. Safe while another
// process trains in the folder.
std::optional<Checkpoint> find_latest(const std::filesystem::path& run_dir);

// Writes a checkpoint of a run anew, in its place, as one process writes it: the shards of several processes
// become few. Values, names and everything else stay. UserError as save_checkpoint.
std::filesystem::path merge_shards(const Checkpoint& checkpoint, const std::filesystem::path& run_dir);

// For commands that take a run or a checkpoint: the folder itself when it is a checkpoint, else the run's
// newest. UserError when it is neither.
Checkpoint open_run_or_checkpoint(const std::filesystem::path& path);

}  // namespace moebius::ckpt
