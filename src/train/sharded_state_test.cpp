// Checkpoints that one layout writes and another loads; each rank is a thread.
#include "train/sharded_state.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/test_folder.h"
#include "ckpt/async_checkpointer.h"
#include "ckpt/folder.h"
#include "moe/moe_feed_forward.h"
#include "parallel/solo_communicator.h"
#include "parallel/thread_group.h"
#include "parallel/zero_test_model.h"
#include "train/model_files.h"

namespace moebius::train {
namespace {

namespace fs = std::filesystem;
using parallel::Communicator;
using parallel::DataParallel;
using parallel::ThreadGroup;

constexpr int64_t kMicroBatches = 4;

struct Layout {
  int64_t stage;
  int ranks;
};

struct Precision {
  at::ScalarType dtype = at::kFloat;
  std::string state_dtype = "fp32";
};

config::OptimizerConfig optimizer_config(const Precision& precision) {
  config::OptimizerConfig config;
  config.lr = 0.01;
  config.state_dtype = precision.state_dtype;
  return config;
}

// What a rank of a run has.
struct Rank {
  Rank(const Layout& layout, const Precision& precision, Communicator& comm)
      : data(comm),
        decoder(moe::make_decoder(parallel::zero_model())),
        axes{{&comm, nullptr}, {&comm, nullptr}, &comm},
        parallel(allocated(*decoder, precision.dtype), axes,
                 {.zero_stage = layout.stage, .bucket_bytes = 20'000}),
        optimizer(optimizer_config(precision), parallel.slices()),
        state(pieces_of(*decoder, parallel, optimizer), comm) {
    decoder->set_gate(&parallel);
  }

  static nn::ParamTable& allocated(nn::Decoder& decoder, at::ScalarType dtype) {
    decoder.params().allocate(dtype, at::kCPU);
    decoder.params().initialise(5);
    return decoder.params();
  }

  // The loss of the whole batch.
  double step(int64_t step) {
    nn::ForwardOptions options;
    options.with_losses = true;
    at::Tensor loss = at::zeros({});
    const int64_t own = kMicroBatches / data.size();
    for (int64_t i = 0; i < own; ++i) {
      const nn::TokenBatch batch = parallel::zero_batch(step, own * data.rank() + i);
      const nn::DecoderOutput output = decoder->forward(batch, options);
      const at::Tensor own_loss =
          decoder->loss(output.hidden_TD, batch.targets_T,
                        1.0 / static_cast<double>(parallel::kZeroTokens * kMicroBatches));
      loss += own_loss.detach();
      parallel.begin_backward(i == own - 1);
      (own_loss + output.balance_loss / static_cast<double>(kMicroBatches)).backward();
      parallel.end_backward();
    }
    parallel.finish_gradients();
    optimizer.step(0.01, step, optimizer.clip(parallel.sum_of_squares()).scale);
    parallel.finish_update();
    data.all_reduce(loss).wait();
    return loss.item<double>();
  }

  Communicator& data;
  std::unique_ptr<nn::Decoder> decoder;
  parallel::DataAxes axes;
  DataParallel parallel;
  AdamW optimizer;
  ShardedState state;
};

void save(Rank& rank, const fs::path& run, int64_t step, bool background) {
  ckpt::AsyncCheckpointer checkpointer(
      run,
      {.background = background,
       .writers = {.rank = rank.data.rank(), .count = rank.data.size(), .attempt = "1", .timeout_s = 60}});
  ASSERT_TRUE(checkpointer.save({step, "", "{}"}, [&] { return rank.state.capture(); }).ok());
  rank.step(100);  // what is written is of the moment of the call
  ASSERT_TRUE(checkpointer.finish().ok());
  rank.data.barrier();
}

void load(Rank& rank, const fs::path& run, int64_t step) {
  rank.state.load(ckpt::Checkpoint::open(ckpt::step_dir(run, step)));
  rank.parallel.slices_changed();
}

// Losses of the steps [first, last], from a checkpoint of step first - 1 unless that is 0; a checkpoint of
// step `last` is left behind.
std::vector<double> run_steps(const Layout& layout, const Precision& precision, const fs::path& run,
                              int64_t first, int64_t last) {
  std::vector<double> losses;
  ThreadGroup group(layout.ranks, "world");
  group.run([&](Communicator& comm) {
    Rank rank(layout, precision, comm);
    if (first > 1) load(rank, run, first - 1);
    std::vector<double> own;
    for (int64_t step = first; step <= last; ++step) own.push_back(rank.step(step));
    save(rank, run, last, layout.stage != 1);
    if (comm.rank() == 0) losses = own;
  });
  return losses;
}

// The state of a checkpoint as one process holds it.
std::vector<at::Tensor> values_of(const fs::path& run, int64_t step, const Precision& precision) {
  const auto decoder = moe::make_decoder(parallel::zero_model());
  Rank::allocated(*decoder, precision.dtype);
  const AdamW optimizer(optimizer_config(precision), decoder->params());
  const std::vector<ckpt::TensorGroup> groups = {model_group(*decoder),
                                                 {kOptimizerGroup, optimizer.tensors()}};
  ckpt::Checkpoint::open(ckpt::step_dir(run, step)).load(groups);
  std::vector<at::Tensor> values;
  for (const ckpt::TensorGroup& group : groups)
    for (const ckpt::NamedTensor& named : group.tensors) values.push_back(named.tensor.clone());
  return values;
}

TEST(ShardedState, any_layout_goes_on_where_another_stopped) {
  const TestFolder folder;
  const std::vector<double> straight = run_steps({0, 1}, {}, folder / "straight", 1, 6);
  const std::vector<std::pair<Layout, Layout>> changes = {
      {{0, 1}, {3, 2}}, {{1, 2}, {0, 1}}, {{3, 4}, {2, 2}}, {{2, 4}, {1, 4}}, {{3, 2}, {3, 4}}};
  for (size_t i = 0; i < changes.size(); ++i) {
    const auto& [from, to] = changes[i];
    SCOPED_TRACE(testing::Message() << "stage " << from.stage << " on " << from.ranks << " -> stage "
                                    << to.stage << " on " << to.ranks);
    const fs::path run = folder / ("change-" + std::to_string(i));
    std::vector<double> losses = run_steps(from, {}, run, 1, 3);
    const std::vector<double> rest = run_steps(to, {}, run, 4, 6);
    losses.insert(losses.end(), rest.begin(), rest.end());
    ASSERT_EQ(losses.size(), straight.size());
    for (size_t step = 0; step < losses.size(); ++step)
      EXPECT_NEAR(losses[step], straight[step], 1e-4 * straight[step]) << "step " << step + 1;
  }
}

// Loaded and saved again at once, by other ranks, the state is the same bit for bit.
TEST(ShardedState, passes_through_any_layout_unchanged) {
  for (const Precision& precision :
       std::vector<Precision>{{}, {at::kBFloat16, "fp32"}, {at::kBFloat16, "int8"}}) {
    SCOPED_TRACE(precision.state_dtype);
    const TestFolder folder;
    run_steps({3, 4}, precision, folder.path(), 1, 2);
    const std::vector<at::Tensor> first = values_of(folder.path(), 2, precision);
    for (const Layout& layout : std::vector<Layout>{{0, 2}, {1, 4}, {2, 2}, {3, 2}}) {
      ThreadGroup group(layout.ranks, "world");
      const TestFolder copy;
      group.run([&](Communicator& comm) {
        Rank rank(layout, precision, comm);
        load(rank, folder.path(), 2);
        save(rank, copy.path(), 2, true);
      });
      const std::vector<at::Tensor> second = values_of(copy.path(), 2, precision);
      ASSERT_EQ(first.size(), second.size());
      for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], second[i])) << i;
    }
  }
}

TEST(ShardedState, slices_of_tensor_and_expert_axes_pass_through_unchanged) {
  const TestFolder folder;
  run_steps({0, 1}, {}, folder.path(), 1, 2);
  const std::vector<at::Tensor> first = values_of(folder.path(), 2, {});
  struct Split {
    int ep, tp;
    int64_t stage;
    bool on_grid = false;
  };
  for (const Split& split :
       std::vector<Split>{{1, 2, 0}, {2, 1, 0}, {2, 2, 0}, {2, 2, 2}, {2, 2, 0, true}, {2, 2, 1, true}}) {
    SCOPED_TRACE(testing::Message() << "ep " << split.ep << ", tp " << split.tp << ", stage " << split.stage
                                    << (split.on_grid ? ", on a grid" : ""));
    const TestFolder copy;
    ThreadGroup group(split.ep * split.tp, "world");
    group.run([&](Communicator& comm) {
      parallel::SoloCommunicator alone("data");
      const auto decoder = moe::make_decoder(parallel::zero_model());
      const nn::AxisPlace row{split.ep, comm.rank() / split.tp}, column{split.tp, comm.rank() % split.tp};
      decoder->params().split({.ep = row, .tp = column, .grid = split.on_grid ? row : nn::AxisPlace{}});
      Rank::allocated(*decoder, at::kFloat);
      DataParallel parallel(decoder->params(), {{&alone, nullptr}, {&alone, nullptr}, &comm},
                            {.zero_stage = split.stage, .bucket_bytes = 20'000});
      const AdamW optimizer(optimizer_config({}), parallel.slices());
      ShardedState state(pieces_of(*decoder, parallel, optimizer), comm);
      state.load(ckpt::Checkpoint::open(ckpt::step_dir(folder.path(), 2)));
      parallel.slices_changed();
      ckpt::AsyncCheckpointer checkpointer(
          copy.path(),
          {.background = false,
           .writers = {.rank = comm.rank(), .count = comm.size(), .attempt = "1", .timeout_s = 60}});
      ASSERT_TRUE(checkpointer.save({2, "", "{}"}, [&] { return state.capture(); }).ok());
      ASSERT_TRUE(checkpointer.finish().ok());
      comm.barrier();
    });
    const std::vector<at::Tensor> second = values_of(copy.path(), 2, {});
    ASSERT_EQ(first.size(), second.size());
    for (size_t i = 0; i < first.size(); ++i) EXPECT_TRUE(at::equal(first[i], second[i])) << i;
  }
}

TEST(ShardedState, every_rank_writes_about_as_much_and_no_more_travels_than_must) {
  ThreadGroup group(4, "world");
  group.run([&](Communicator& comm) {
    Rank rank({3, 4}, {}, comm);
    const int64_t before = comm.traffic()["send"].sent_bytes;
    rank.state.capture();
    at::Tensor written = at::full({1}, rank.state.written_bytes()), sum = written.clone(),
               sent = at::full({1}, comm.traffic()["send"].sent_bytes - before);
    comm.all_reduce(sum).wait();
    comm.all_reduce(written, parallel::ReduceOp::max).wait();
    comm.all_reduce(sent).wait();
    EXPECT_LT(written.item<int64_t>(), sum.item<int64_t>() * 2 / 4);
    EXPECT_LT(sent.item<int64_t>(), sum.item<int64_t>() * 3 / 4);
  });
}

}  // namespace
}  // namespace moebius::train
