#include "parallel/gradient_buckets.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "parallel/solo_communicator.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

// Declared in this order; of the sizes that decide where buckets end and shards are cut.
void declare(nn::ParamTable& params) {
  params.declare({.name = "embedding", .dims = {10, 7}, .init = nn::Init::normal(1)});
  params.declare({.name = "layers.0.dense", .dims = {129, 64}, .init = nn::Init::normal(1)});
  params.declare({.name = "layers.0.router", .dims = {5}, .init = nn::Init::normal(1), .is_fp32 = true});
  params.declare({.name = "layers.0.bias", .dims = {5}, .is_buffer = true});
  params.declare({.name = "layers.1.experts",
                  .dims = {4, 30, 40},
                  .klass = nn::ParamClass::expert,
                  .init = nn::Init::normal(1)});
  params.declare({.name = "final_norm", .dims = {7}, .init = nn::Init::ones()});
}

void fill(nn::ParamTable& params, at::ScalarType dtype = at::kFloat) {
  declare(params);
  params.allocate(dtype, at::kCPU);
  params.initialise(3);
}

TEST(FlatBucketTest, lays_parameters_out_backwards_and_never_cuts_a_block_of_moments) {
  ThreadGroup group(3);
  nn::ParamTable params;
  fill(params, at::kBFloat16);
  const DataAxes axes{{&group[1], nullptr}, {&group[2], nullptr}, &group[0]};
  const std::vector<FlatBucket> buckets = make_buckets(params, axes, 1 << 20, false);
  ASSERT_EQ(buckets.size(), 3u);
  EXPECT_EQ(buckets[0].entries[0].param->spec.name, "layers.1.experts");
  EXPECT_EQ(buckets[0].axis, &axes.expert);
  EXPECT_EQ(buckets[1].entries[0].param->spec.name, "layers.0.router");
  EXPECT_EQ(buckets[1].dtype, at::kFloat);
  ASSERT_EQ(buckets[2].entries.size(), 3u);
  EXPECT_EQ(buckets[2].entries[0].param->spec.name, "final_norm");
  EXPECT_EQ(buckets[2].entries[1].offset, 256);
  for (const FlatBucket& bucket : buckets) {
    EXPECT_EQ(bucket.size % (3 * 256), 0);
    for (const FlatEntry& entry : bucket.entries) {
      int64_t next = 0;
      for (int rank = 0; rank < 3; ++rank) {
        const ShardPart part = part_of(bucket, entry, rank);
        if (part.begin == part.end) continue;
        EXPECT_EQ(part.begin, next) << entry.param->spec.name;
        EXPECT_TRUE(entry.size < 4096 || part.begin % 256 == 0) << entry.param->spec.name;
        EXPECT_EQ(part.offset + bucket.shard_size() * rank, entry.offset + part.begin);
        next = part.end;
      }
      EXPECT_EQ(next, entry.size) << entry.param->spec.name;
    }
  }
  EXPECT_EQ(make_buckets(params, axes, 1, false).size(), 5u) << "a bucket for each parameter";
  EXPECT_EQ(make_buckets(params, axes, 1 << 20, true).size(), 5u) << "buckets end with blocks";
}

TEST(FlatBucketTest, buckets_are_a_sixteenth_of_a_model_unless_less_is_asked_for_or_that_is_next_to_nothing) {
  nn::ParamTable params;
  params.declare({.name = "layers.0.dense", .dims = {2048, 1024}, .init = nn::Init::zeros()});
  params.declare({.name = "layers.0.bias", .dims = {1 << 20}, .is_buffer = true});
  params.allocate(at::kFloat, at::kCPU);
  EXPECT_EQ(bucket_bytes_for(params, int64_t{25} << 20), int64_t{512} << 10);
  EXPECT_EQ(bucket_bytes_for(params, 1000), 1000);
  nn::ParamTable small;
  fill(small);
  EXPECT_EQ(bucket_bytes_for(small, int64_t{25} << 20), int64_t{256} << 10);
}

// The sum over elements of parameter * factor, without the parameters whose factor is 0.
at::Tensor loss_of(nn::ParamTable& params, const std::vector<float>& factors) {
  at::Tensor loss = at::zeros({});
  size_t i = 0;
  for (nn::Param& param : params.params()) {
    if (param.spec.is_buffer) continue;
    const float factor = factors[i++];
    if (factor != 0) loss = loss + (param.value * param.value).sum() * (0.5F * factor);
  }
  return loss;
}

// Two micro-batches on each rank; gradients are the parameter times the sum of the factors.
void run_step(nn::ParamTable& params, GradientBuckets& gradients, const std::vector<float>& first,
              const std::vector<float>& second) {
  gradients.begin(false);
  loss_of(params, first).backward();
  gradients.end();
  gradients.begin(true);
  loss_of(params, second).backward();
  gradients.end();
  gradients.finish();
}

class Reductions : public testing::TestWithParam<GradientBuckets::Keep> {};

TEST_P(Reductions, sum_what_each_rank_has_and_take_what_it_lacks_for_zeros) {
  ThreadGroup dense(4, "data"), expert_a(2, "expert_data"), expert_b(2, "expert_data");
  dense.run([&](Communicator& comm) {
    const int rank = comm.rank();
    nn::ParamTable params;
    fill(params);
    Communicator& expert = (rank % 2 == 0 ? expert_a : expert_b)[rank / 2];
    const DataAxes axes{{&comm, nullptr}, {&expert, nullptr}, &comm};
    const std::vector<FlatBucket> buckets = make_buckets(params, axes, 20'000, false);
    GradientBuckets gradients(buckets, GetParam());
    // A rank lacks a gradient in one micro-batch or both; nobody has that of the router.
    const auto r = static_cast<float>(rank);
    const std::vector<float> first{1, rank == 1 ? 0.0F : 2.0F, 0, r, rank == 0 ? 0.0F : 1.0F},
        second{rank == 2 ? 0.0F : r, rank == 1 ? 0.0F : 4.0F, 0, 1, 0};
    const std::vector<float> dense_sums{4 + 0 + 1 + 3, 3 * (2 + 4), 0, 0, 3};
    const float expert_sum = rank % 2 == 0 ? 0.0F + 2 + 2 : 1.0F + 3 + 2;
    for (int step = 0; step < 2; ++step) {
      run_step(params, gradients, first, second);
      for (size_t b = 0; b < buckets.size(); ++b) {
        for (const FlatEntry& entry : buckets[b].entries) {
          const bool is_expert = entry.param->spec.klass == nn::ParamClass::expert;
          size_t i = 0;
          for (const nn::Param& param : params.params()) {
            if (&param == entry.param) break;
            i += !param.spec.is_buffer;
          }
          const float factor = is_expert ? expert_sum : dense_sums[i];
          const at::Tensor expected = entry.param->value.detach().view({-1}) * factor;
          const ShardPart part = part_of(buckets[b], entry, buckets[b].axis->shard->rank());
          const at::Tensor found = gradients.shard(b).narrow(0, part.offset, part.end - part.begin);
          EXPECT_TRUE(at::allclose(found, expected.slice(0, part.begin, part.end), 1e-5, 1e-6))
              << entry.param->spec.name << " on rank " << rank << " in step " << step;
          const at::Tensor& whole = entry.param->value.grad();
          ASSERT_EQ(whole.defined(), GetParam() == GradientBuckets::Keep::whole);
          EXPECT_TRUE(!whole.defined() || at::allclose(whole.view({-1}), expected, 1e-5, 1e-6));
        }
      }
      gradients.release();
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Keeps, Reductions,
                         testing::Values(GradientBuckets::Keep::whole, GradientBuckets::Keep::whole_till_end,
                                         GradientBuckets::Keep::shard));

// Notes the order in which collectives begin.
class Noting final : public Communicator {
 public:
  explicit Noting(std::vector<int64_t>& sizes) : solo_("data"), sizes_(sizes) {}
  const std::string& axis() const override { return solo_.axis(); }
  int rank() const override { return 0; }
  int size() const override { return 1; }
  Pending all_reduce(at::Tensor inout, ReduceOp op) override {
    sizes_.push_back(inout.numel());
    return solo_.all_reduce(inout, op);
  }
  Pending all_gather(at::Tensor out, at::Tensor in) override { return solo_.all_gather(out, in); }
  Pending reduce_scatter(at::Tensor out, at::Tensor in) override {
    sizes_.push_back(in.numel());
    return solo_.reduce_scatter(out, in);
  }
  Pending all_to_all(at::Tensor out, at::Tensor in, std::vector<int64_t> out_rows,
                     std::vector<int64_t> in_rows) override {
    return solo_.all_to_all(out, in, out_rows, in_rows);
  }
  Pending broadcast(at::Tensor inout, int root) override { return solo_.broadcast(inout, root); }
  Pending send(at::Tensor in, int to) override { return solo_.send(in, to); }
  Pending receive(at::Tensor out, int from) override { return solo_.receive(out, from); }
  void barrier() override {}
  std::map<std::string, Traffic> traffic() const override { return {}; }

 private:
  SoloCommunicator solo_;
  std::vector<int64_t>& sizes_;
};

TEST(GradientBucketsTest, starts_in_one_order_whatever_gradients_exist_and_before_the_backward_pass_ends) {
  std::vector<int64_t> started, sizes;
  Noting noting(started);
  const DataAxes axes{{&noting, nullptr}, {&noting, nullptr}, &noting};
  nn::ParamTable params;
  fill(params);
  const std::vector<FlatBucket> buckets = make_buckets(params, axes, 1, false);
  for (const FlatBucket& bucket : buckets) sizes.push_back(bucket.size);
  GradientBuckets gradients(buckets, GradientBuckets::Keep::whole);
  for (const std::vector<float>& factors :
       std::vector<std::vector<float>>{{1, 1, 1, 1, 1}, {1, 1, 1, 0, 1}, {0, 0, 0, 0, 0}, {1, 0, 0, 0, 0}}) {
    started.clear();
    gradients.begin(true);
    at::Tensor loss = loss_of(params, factors);
    if (loss.requires_grad()) loss.backward();
    const size_t within = started.size();
    gradients.end();
    EXPECT_EQ(started, sizes);
    // All up to the first that lacks one.
    size_t complete = 0;
    const size_t entry_of_bucket[] = {4, 3, 2, 1, 0};
    while (complete < 5 && factors[entry_of_bucket[complete]] != 0) ++complete;
    EXPECT_EQ(within, complete);
    gradients.finish();
    gradients.release();
  }
}

TEST(GradientBucketsTest, gradients_are_autograds_own_outside_a_step) {
  std::vector<int64_t> started;
  Noting noting(started);
  const DataAxes axes{{&noting, nullptr}, {&noting, nullptr}, &noting};
  nn::ParamTable params;
  fill(params);
  const std::vector<FlatBucket> buckets = make_buckets(params, axes, 1, false);
  {
    GradientBuckets gradients(buckets, GradientBuckets::Keep::shard);
    loss_of(params, {1, 1, 1, 1, 1}).backward();
    EXPECT_TRUE(at::equal(params.find("final_norm")->value.grad(), params.find("final_norm")->value));
    gradients.release();
  }
  loss_of(params, {1, 1, 1, 1, 1}).backward();
  EXPECT_TRUE(params.find("embedding")->value.grad().defined()) << "the hooks are gone";
  EXPECT_TRUE(started.empty());
}

}  // namespace
}  // namespace moebius::parallel
