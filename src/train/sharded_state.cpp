#include "train/sharded_state.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <sstream>
#include <utility>

#include "base/check.h"
#include "ckpt/tensor_bytes.h"
#include "train/model_files.h"

namespace moebius::train {
namespace {

int64_t num_elements(const std::vector<int64_t>& dims) {
  int64_t count = 1;
  for (const int64_t dim : dims) count *= dim;
  return count;
}

// A tensor that has no memory.
at::Tensor without_memory(const std::vector<int64_t>& dims, at::ScalarType dtype) {
  return at::empty(dims, at::TensorOptions().dtype(dtype).device(at::kMeta));
}

// The texts of all ranks, in their order.
std::vector<std::string> exchange_texts(parallel::Communicator& world, const std::string& own) {
  const int64_t ranks = world.size();
  const at::Tensor length = at::empty({1}, at::kLong).fill_(static_cast<int64_t>(own.size()));
  const at::Tensor lengths = at::empty({ranks}, at::kLong);
  world.all_gather(lengths, length).wait();
  const int64_t most = lengths.max().item<int64_t>();
  const at::Tensor bytes = at::zeros({most}, at::kByte);
  std::memcpy(bytes.mutable_data_ptr(), own.data(), own.size());
  const at::Tensor all = at::empty({ranks, most}, at::kByte);
  world.all_gather(all, bytes).wait();
  std::vector<std::string> texts;
  for (int64_t rank = 0; rank < ranks; ++rank)
    texts.emplace_back(static_cast<const char*>(all.const_data_ptr()) + rank * most,
                       static_cast<size_t>(lengths.const_data_ptr<int64_t>()[rank]));
  return texts;
}

// "2 1 0 4 2 0 8 16 8": two dims, the first of one range, the second of two. "0": the whole.
std::string text_of(const nn::ParamSlice& slice) {
  std::string text = std::to_string(slice.dims.size());
  for (const std::vector<nn::Range>& ranges : slice.dims) {
    text += concat(" ", ranges.size());
    for (const nn::Range& range : ranges) text += concat(" ", range.begin, " ", range.count);
  }
  return text;
}

nn::ParamSlice read_slice(std::istream& words) {
  size_t num_dims = 0;
  words >> num_dims;
  nn::ParamSlice slice;
  for (size_t dim = 0; dim < num_dims; ++dim) {
    size_t num_ranges = 0;
    words >> num_ranges;
    std::vector<nn::Range>& ranges = slice.dims.emplace_back(num_ranges);
    for (nn::Range& range : ranges) words >> range.begin >> range.count;
  }
  return slice;
}

// Calls copy(place in the flat whole, place in the flat piece, elements) for what lies together in both.
template <class Copy>
void for_each_run(const nn::ParamSlice& slice, const std::vector<int64_t>& dims, int64_t begin, int64_t end,
                  const Copy& copy) {
  if (slice.is_whole()) {
    copy(begin, int64_t{0}, end - begin);
    return;
  }
  for (const nn::SliceRun& run : nn::slice_runs(slice, dims, INT64_MAX)) {
    const int64_t first = std::max(begin, run.local), last = std::min(end, run.local + run.count);
    if (first < last) copy(run.whole + first - run.local, first - begin, last - first);
  }
}

std::byte* bytes_at(const at::Tensor& flat, int64_t element) {
  return static_cast<std::byte*>(flat.data_ptr()) + element * static_cast<int64_t>(flat.element_size());
}

}  // namespace

std::vector<StatePiece> pieces_of(nn::Decoder& decoder, const parallel::DataParallel& parallel,
                                  const AdamW& optimizer) {
  std::vector<StatePiece> pieces;
  for (const parallel::OwnedSlice& slice : parallel.slices())
    pieces.push_back({kModelGroup, slice.param->spec.name, slice.param->spec.dims, slice.begin, slice.end,
                      slice.value.view({-1}), slice.param->slice});
  for (const nn::Param& param : decoder.params().params())
    if (param.spec.is_buffer)
      pieces.push_back({kModelGroup, param.spec.name, param.spec.dims, 0, param.value.numel(),
                        param.value.detach().view({-1}), param.slice});
  for (const AdamW::State& state : optimizer.state()) {
    const bool is_shared = state.unit > 1;
    MOEBIUS_CHECK(!is_shared || state.param->slice.is_whole(), "blocks of a slice of ", state.name);
    const auto units = [&](int64_t elements) { return (elements + state.unit - 1) / state.unit; };
    MOEBIUS_CHECK_EQ(state.begin % state.unit, 0, "a shard of ", state.name, " cuts a block");
    pieces.push_back(
        {kOptimizerGroup, state.name,
         is_shared ? std::vector<int64_t>{units(state.param->spec.num_elements())} : state.param->spec.dims,
         state.begin / state.unit, units(state.end), state.tensor.view({-1}), state.param->slice});
  }
  return pieces;
}

ShardedState::ShardedState(std::vector<StatePiece> pieces, parallel::Communicator& world)
    : pieces_(std::move(pieces)), world_(world) {
  const at::NoGradGuard no_grad;
  agree();
  choose_writers();
}

ShardedState::~ShardedState() = default;

// Every rank tells what it holds.
void ShardedState::agree() {
  std::string own;
  for (const StatePiece& piece : pieces_) {
    MOEBIUS_CHECK_EQ(piece.values.numel(), piece.end - piece.begin, "piece of ", piece.name);
    std::string line = concat(piece.group, " ", piece.name, " ", static_cast<int>(piece.values.scalar_type()),
                              " ", piece.begin, " ", piece.end, " ", text_of(piece.slice));
    for (const int64_t dim : piece.dims) line += concat(" ", dim);
    own += line + "\n";
  }
  const std::vector<std::string> texts = exchange_texts(world_, own);
  std::map<std::pair<std::string, std::string>, Whole> by_name;
  for (int rank = 0; rank < world_.size(); ++rank) {
    std::istringstream lines(texts[static_cast<size_t>(rank)]);
    for (std::string line; std::getline(lines, line);) {
      std::istringstream words(line);
      std::string group, name;
      int dtype = 0;
      int64_t begin = 0, end = 0;
      words >> group >> name >> dtype >> begin >> end;
      nn::ParamSlice slice = read_slice(words);
      std::vector<int64_t> dims;
      for (int64_t dim = 0; words >> dim;) dims.push_back(dim);
      const auto [at, is_new] = by_name.try_emplace({group, name});
      Whole& whole = at->second;
      if (is_new) {
        whole.group = group;
        whole.name = name;
        whole.dims = dims;
        whole.dtype = static_cast<at::ScalarType>(dtype);
      }
      MOEBIUS_CHECK(whole.dims == dims && static_cast<int>(whole.dtype) == dtype, "rank ", rank,
                    " holds another ", name);
      const auto same = std::find_if(whole.parts.begin(), whole.parts.end(), [&](const Whole::Part& part) {
        return part.begin == begin && part.end == end && part.slice == slice;
      });
      if (same != whole.parts.end()) {
        same->holders.push_back(rank);
      } else {
        whole.parts.push_back({std::move(slice), begin, end, {rank}});
      }
    }
  }
  for (auto& [name, whole] : by_name) {
    // Slices are disjoint or the same, because all ranks cut along the same axes.
    std::stable_sort(whole.parts.begin(), whole.parts.end(),
                     [](const Whole::Part& a, const Whole::Part& b) { return a.begin < b.begin; });
    int64_t count = 0;
    for (size_t i = 0; i < whole.parts.size(); ++i) {
      const Whole::Part& part = whole.parts[i];
      int64_t before = 0;  // where the part before it in its slice ends
      for (size_t j = 0; j < i; ++j)
        if (whole.parts[j].slice == part.slice) before = whole.parts[j].end;
      MOEBIUS_CHECK_EQ(part.begin, before, "pieces of ", whole.name);
      count += part.end - part.begin;
    }
    MOEBIUS_CHECK_EQ(count, num_elements(whole.dims), "pieces of ", whole.name);
    wholes_.push_back(std::move(whole));
  }
}

void ShardedState::choose_writers() {
  const auto ranks = static_cast<size_t>(world_.size());
  std::vector<int64_t> load(ranks, 0);
  for (Whole& whole : wholes_) {
    std::vector<int64_t> held(ranks, 0);
    for (const Whole::Part& part : whole.parts)
      for (const int rank : part.holders) held[static_cast<size_t>(rank)] += part.end - part.begin;
    size_t best = 0;
    for (size_t rank = 1; rank < ranks; ++rank)
      if (held[rank] > held[best] || (held[rank] == held[best] && load[rank] < load[best])) best = rank;
    whole.writer = static_cast<int>(best);
    load[best] += num_elements(whole.dims) * static_cast<int64_t>(c10::elementSize(whole.dtype));
    for (Whole::Part& part : whole.parts) {
      const bool has =
          std::find(part.holders.begin(), part.holders.end(), whole.writer) != part.holders.end();
      part.source = has ? whole.writer : part.holders.front();
    }
  }
}

const StatePiece& ShardedState::piece_of(const Whole& whole, const Whole::Part& part) const {
  const auto found = std::find_if(pieces_.begin(), pieces_.end(), [&](const StatePiece& piece) {
    return piece.name == whole.name && piece.group == whole.group && piece.begin == part.begin &&
           piece.slice == part.slice;
  });
  MOEBIUS_CHECK(found != pieces_.end(), "no piece of ", whole.name, " here");
  return *found;
}

std::span<const ckpt::PendingGroup> ShardedState::capture() {
  const at::NoGradGuard no_grad;
  const int rank = world_.rank();
  std::vector<parallel::Pending> sends;
  groups_.clear();
  for (Whole& whole : wholes_) {
    if (whole.writer == rank && !whole.values.defined()) whole.values = at::empty(whole.dims, whole.dtype);
    for (const Whole::Part& part : whole.parts) {
      if (part.source != rank && whole.writer != rank) continue;
      if (part.source == rank && whole.writer != rank) {
        // Files are written from the host, so pieces travel between hosts.
        sends.push_back(world_.send(piece_of(whole, part).values.cpu(), whole.writer));
        continue;
      }
      at::Tensor values;
      if (part.source == rank) {
        values = piece_of(whole, part).values.cpu();
      } else {
        values = at::empty({part.end - part.begin}, whole.dtype);
        world_.receive(values, part.source).wait();
      }
      const auto element_bytes = values.element_size();
      for_each_run(part.slice, whole.dims, part.begin, part.end,
                   [&](int64_t in_whole, int64_t in_piece, int64_t count) {
                     std::memcpy(bytes_at(whole.values, in_whole), bytes_at(values, in_piece),
                                 static_cast<size_t>(count) * element_bytes);
                   });
    }
    if (groups_.empty() || groups_.back().name != whole.group) groups_.push_back({whole.group, {}});
    ckpt::PendingTensor tensor{ckpt::spec_of(whole.name, without_memory(whole.dims, whole.dtype)), {}};
    tensor.writer = whole.writer;
    if (whole.writer == rank)
      tensor.emit = [values = whole.values](const ckpt::ByteSink& sink) { ckpt::emit_bytes(values, sink); };
    groups_.back().tensors.push_back(std::move(tensor));
  }
  for (parallel::Pending& send : sends) send.wait();
  return groups_;
}

void ShardedState::load(const ckpt::Checkpoint& checkpoint) {
  const at::NoGradGuard no_grad;
  std::vector<ckpt::TensorGroup> groups;
  for (const Whole& whole : wholes_) {
    if (groups.empty() || groups.back().name != whole.group) groups.push_back({whole.group, {}});
    groups.back().tensors.push_back({whole.name, without_memory(whole.dims, whole.dtype)});
  }
  for (const ckpt::TensorGroup& group : groups) {
    const std::vector<at::Tensor> saved = checkpoint.mapped(group);
    for (size_t i = 0; i < saved.size(); ++i) {
      for (const StatePiece& piece : pieces_) {
        if (piece.name != group.tensors[i].name || piece.group != group.name) continue;
        const at::Tensor whole = saved[i].view({-1});
        if (piece.slice.is_whole()) {
          piece.values.copy_(whole.narrow(0, piece.begin, piece.end - piece.begin));
          continue;
        }
        const at::Tensor values = at::empty(piece.values.sizes(), whole.options());
        for_each_run(piece.slice, piece.dims, piece.begin, piece.end,
                     [&](int64_t in_whole, int64_t in_piece, int64_t count) {
                       std::memcpy(bytes_at(values, in_piece), bytes_at(whole, in_whole),
                                   static_cast<size_t>(count) * values.element_size());
                     });
        piece.values.copy_(values);
      }
    }
  }
}

int64_t ShardedState::written_bytes() const {
  int64_t sum = 0;
  for (const Whole& whole : wholes_)
    if (whole.writer == world_.rank())
      sum += num_elements(whole.dims) * static_cast<int64_t>(c10::elementSize(whole.dtype));
  return sum;
}

}  // namespace moebius::train
