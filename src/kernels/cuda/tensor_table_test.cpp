#include "kernels/cuda/tensor_table.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

namespace moebius::kernels::cuda {
namespace {

struct Listed {
  int64_t size;
  int name;
};
struct Entry {
  int name;
};

// Pieces that blocks of all launches work on, by tensor.
std::map<int, std::vector<int64_t>> pieces_of(const std::vector<Listed>& tensors, int64_t piece,
                                              int* launches) {
  TensorTable<Entry, 3> table{};
  std::map<int, std::vector<int64_t>> pieces;
  launch_tables(
      table, tensors, piece, [](const Listed& t) { return Entry{t.name}; },
      [&](int64_t blocks) {
        ++*launches;
        for (int block = 0; block < static_cast<int>(blocks); ++block) {
          const int index = find_tensor(table, block);
          pieces[table.tensors[index].name].push_back(block - table.first_block[index]);
        }
      });
  return pieces;
}

TEST(TensorTable, each_piece_of_each_tensor_has_one_block) {
  int launches = 0;
  const auto pieces = pieces_of({{100, 1}, {0, 2}, {101, 3}, {1, 4}, {500, 5}, {99, 6}}, 100, &launches);
  EXPECT_EQ(launches, 2);
  EXPECT_EQ(pieces, (std::map<int, std::vector<int64_t>>{
                        {1, {0}}, {3, {0, 1}}, {4, {0}}, {5, {0, 1, 2, 3, 4}}, {6, {0}}}));
}

TEST(TensorTable, nothing_is_launched_for_nothing) {
  int launches = 0;
  EXPECT_TRUE(pieces_of({}, 10, &launches).empty());
  EXPECT_TRUE(pieces_of({{0, 1}, {0, 2}}, 10, &launches).empty());
  EXPECT_EQ(launches, 0);
}

}  // namespace
}  // namespace moebius::kernels::cuda
