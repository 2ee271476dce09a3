#include "nn/param.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "base/concat.h"
#include "nn/attention.h"

namespace moebius::nn {
namespace {

using Dims = std::vector<int64_t>;

struct SplitCase {
  Dims dims;
  AxisMap sharding;
  Dims tp_parts = {};
};

// Rows, columns, experts with rows or columns, fused parts; sizes that no axis divides and that are below it.
std::vector<SplitCase> split_cases() {
  return {{{7}, {.tp = 0}},
          {{16, 5}, {.tp = 0}},
          {{3, 64}, {.tp = 1}},
          {{300, 173}, {.tp = 0}},
          {{300, 173}, {.tp = 1}},
          {{1, 3}, {.tp = 0}},
          {{8, 12, 10}, {.ep = 0, .tp = 1}},
          {{8, 10, 12}, {.ep = 0, .tp = 2}},
          {{5, 9, 7}, {.ep = 0, .tp = 2}},
          {{6, 4}, {.ep = 0}},
          {{40, 6}, {.tp = 0}, {24, 8, 8}},
          {{13}, {.tp = 0}, {7, 3, 3}},
          {{9, 4}, {}}};
}

void declare_all(ParamTable& table) {
  int64_t number = 0;
  for (const SplitCase& each : split_cases())
    table.declare({.name = concat("p", number++),
                   .dims = each.dims,
                   .sharding = each.sharding,
                   .tp_parts = each.tp_parts,
                   .init = Init::normal(0.5)});
}

std::vector<Shards> places_of(int ep, int tp) {
  std::vector<Shards> places;
  for (int e = 0; e < ep; ++e)
    for (int t = 0; t < tp; ++t) places.push_back({.ep = {ep, e}, .tp = {tp, t}});
  return places;
}

void expect_slices_of(at::ScalarType dtype, int ep, int tp) {
  ParamTable whole;
  declare_all(whole);
  whole.allocate(dtype, at::kCPU);
  whole.initialise(11);
  // Written to from every rank; what nobody holds stays a NaN.
  std::vector<at::Tensor> rebuilt;
  for (const Param& param : whole.params()) rebuilt.push_back(at::full_like(param.value.detach(), NAN));
  for (const Shards& shards : places_of(ep, tp)) {
    ParamTable local;
    declare_all(local);
    local.split(shards);
    local.allocate(dtype, at::kCPU);
    local.initialise(11);
    EXPECT_EQ(local.num_elements(), whole.num_elements());
    EXPECT_LE(local.num_local_elements(), whole.num_elements());
    for (size_t i = 0; i < whole.params().size(); ++i) {
      const Param &own = local.params()[i], &all = whole.params()[i];
      EXPECT_EQ(own.spec.dims, all.spec.dims);
      EXPECT_EQ(own.num_local_elements(), own.value.numel());
      const at::Tensor cut = at::empty_like(own.value.detach());
      copy_from_whole(own.slice, all.value, cut);
      EXPECT_TRUE(at::equal(own.value, cut)) << all.spec.name << " at ep " << shards.ep.rank << " of " << ep
                                             << ", tp " << shards.tp.rank << " of " << tp;
      copy_to_whole(own.slice, own.value, rebuilt[i]);
    }
  }
  for (size_t i = 0; i < rebuilt.size(); ++i)
    EXPECT_TRUE(at::equal(rebuilt[i], whole.params()[i].value)) << whole.params()[i].spec.name;
}

TEST(ParamTable, a_slice_begins_with_the_values_that_the_whole_has_there) {
  for (const int ep : {1, 2, 3})
    for (const int tp : {1, 2, 3, 4}) expect_slices_of(at::kFloat, ep, tp);
}

TEST(ParamTable, slices_of_sixteen_bits_too) {
  expect_slices_of(at::kBFloat16, 2, 3);
}

TEST(ParamTable, without_a_split_the_whole_is_held) {
  ParamTable table;
  declare_all(table);
  table.split({});
  table.allocate(at::kFloat, at::kCPU);
  for (const Param& param : table.params()) {
    EXPECT_TRUE(param.slice.is_whole());
    EXPECT_EQ(param.value.sizes(), at::IntArrayRef(param.spec.dims));
  }
}

TEST(ParamTable, a_rank_of_attention_holds_the_rows_of_its_heads) {
  AttentionOptions options{};
  options.dim = 6;
  options.num_heads = 8;
  options.num_kv_heads = 4;
  options.head_dim = 2;
  options.bias = options.sinks = true;
  options.qk_norm = kernels::QkNorm::full;
  ParamTable table;
  const Attention attention(options, "", table);
  table.split({.tp = {2, 1}});
  const std::vector<Range> heads{{8, 8}, {20, 4}, {28, 4}};  // of query, key and value rows the second half
  EXPECT_EQ(table.find("qkv")->slice.dims[0], heads);
  EXPECT_EQ(table.find("qkv_bias")->slice.dims[0], heads);
  EXPECT_EQ(table.find("sinks")->slice.dims[0], (std::vector<Range>{{4, 4}}));
  EXPECT_EQ(table.find("q_norm")->slice.dims[0], (std::vector<Range>{{8, 8}}));
  EXPECT_EQ(table.find("k_norm")->slice.dims[0], (std::vector<Range>{{4, 4}}));
  EXPECT_EQ(table.find("out")->slice.dims, (std::vector<std::vector<Range>>{{{0, 6}}, {{8, 8}}}));
}

TEST(ParamSlice, shares_are_even_to_one_element_and_cover_all) {
  for (const int64_t size : {0, 1, 5, 12, 257})
    for (const int ranks : {1, 2, 3, 4, 7}) {
      int64_t next = 0;
      for (int rank = 0; rank < ranks; ++rank) {
        const Range share = share_of(size, {ranks, rank});
        EXPECT_EQ(share.begin, next);
        EXPECT_TRUE(share.count == size / ranks || share.count == size / ranks + 1);
        next += share.count;
      }
      EXPECT_EQ(next, size);
    }
}

TEST(ParamSlice, copies_between_dtypes) {
  const ParamSlice slice{{{{1, 2}}, {{0, 1}, {3, 2}}}};
  const at::Tensor whole = at::arange(20, at::kFloat).view({4, 5}), local = at::empty({2, 3}, at::kBFloat16);
  copy_from_whole(slice, whole, local);
  EXPECT_TRUE(
      at::equal(local.to(at::kFloat), at::tensor({5., 8., 9., 10., 13., 14.}, at::kFloat).view({2, 3})));
}

}  // namespace
}  // namespace moebius::nn
