#include "parallel/summa.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "ops/cases/check.h"
#include "ops/cases/tolerance.h"
#include "parallel/thread_group.h"

namespace moebius::parallel {
namespace {

// q x q ranks as threads: the lines of the grid are thread groups of their own.
void run_grid(int q, const std::function<void(const Grid& grid, int row, int column)>& body,
              int64_t* most_sent_bytes = nullptr) {
  std::vector<std::unique_ptr<ThreadGroup>> rows, columns;
  for (int i = 0; i < q; ++i) {
    rows.push_back(std::make_unique<ThreadGroup>(q, "row"));
    columns.push_back(std::make_unique<ThreadGroup>(q, "column"));
  }
  ThreadGroup all(q * q, "grid");
  all.run([&](Communicator& comm) {
    const int row = comm.rank() / q, column = comm.rank() % q;
    body({(*rows[static_cast<size_t>(row)])[column], (*columns[static_cast<size_t>(column)])[row]}, row,
         column);
  });
  if (most_sent_bytes == nullptr) return;
  *most_sent_bytes = 0;
  for (int row = 0; row < q; ++row)
    for (int column = 0; column < q; ++column) {
      int64_t sent = 0;
      for (const auto& [what, traffic] : (*rows[static_cast<size_t>(row)])[column].traffic())
        sent += traffic.sent_bytes;
      for (const auto& [what, traffic] : (*columns[static_cast<size_t>(column)])[row].traffic())
        sent += traffic.sent_bytes;
      *most_sent_bytes = std::max(*most_sent_bytes, sent);
    }
}

void expect_block(const at::Tensor& got, const at::Tensor& whole, int q, int row, int column) {
  EXPECT_LE(ops::cases::normalised_error(got, block_of(whole, q, row, column)),
            ops::cases::tolerance(ops::cases::OpClass::product, got.scalar_type()));
}

TEST(Summa, blocks_are_those_of_the_whole_product_and_its_gradients) {
  for (const int q : {1, 2, 3}) {
    SCOPED_TRACE(q);
    at::manual_seed(4);
    // Two products one after the other: an output lies as the next input must.
    const at::Tensor x = at::randn({q * 7, q * 5}), up = at::randn({q * 6, q * 5}),
                     down = at::randn({q * 4, q * 6}), grad = at::randn({q * 7, q * 4});
    std::vector<at::Tensor> exact;
    for (const at::Tensor& each : {x, up, down})
      exact.push_back(each.to(at::kDouble).set_requires_grad(true));
    const at::Tensor want = at::mm(at::mm(exact[0], exact[1].t()), exact[2].t());
    want.backward(grad.to(at::kDouble));
    // Each of them in either form.
    for (const bool up_summed : {false, true})
      for (const bool down_summed : {false, true})
        run_grid(q, [&](const Grid& grid, int row, int column) {
          const auto weight_of = [&](const at::Tensor& all, bool summed) {
            return summed ? block_of(all, q, row, column) : block_of(all, q, column, row);
          };
          const auto linear = [&](const at::Tensor& in, const at::Tensor& weight, bool summed) {
            return summed ? summa_linear_summed(in, weight, grid) : summa_linear(in, weight, grid);
          };
          const at::Tensor own_x = block_of(x, q, row, column).set_requires_grad(true),
                           own_up = weight_of(up, up_summed).set_requires_grad(true),
                           own_down = weight_of(down, down_summed).set_requires_grad(true);
          const at::Tensor y = linear(linear(own_x, own_up, up_summed), own_down, down_summed);
          y.backward(block_of(grad, q, row, column));
          expect_block(y.detach(), want.detach(), q, row, column);
          expect_block(own_x.grad(), exact[0].grad(), q, row, column);
          EXPECT_LE(ops::cases::normalised_error(own_up.grad(), weight_of(exact[1].grad(), up_summed)),
                    ops::cases::tolerance(ops::cases::OpClass::product, at::kFloat));
          EXPECT_LE(ops::cases::normalised_error(own_down.grad(), weight_of(exact[2].grad(), down_summed)),
                    ops::cases::tolerance(ops::cases::OpClass::product, at::kFloat));
        });
  }
}

TEST(Summa, a_rank_sends_its_blocks_to_the_others_of_its_row_and_column) {
  // Elements of x, w and y; each pass as in the header.
  const int64_t t = 24, k = 12, n = 36, element = 4;
  for (const bool summed : {false, true})
    for (const int q : {2, 3, 4}) {
      int64_t forward = 0, both = 0;
      const auto run = [&](bool backward, int64_t* sent) {
        run_grid(
            q,
            [&](const Grid& grid, int, int) {
              const at::Tensor x = at::ones({t / q, k / q}).set_requires_grad(true),
                               weight = at::ones({n / q, k / q}).set_requires_grad(true);
              const at::Tensor y =
                  summed ? summa_linear_summed(x, weight, grid) : summa_linear(x, weight, grid);
              if (backward) y.sum().backward();
            },
            sent);
      };
      run(false, &forward);
      run(true, &both);
      const auto share = [&](int64_t elements) { return elements * element * (q - 1) / (q * q); };
      const int64_t travels = summed ? t * n : t * k;
      EXPECT_EQ(forward, share(travels + n * k));
      EXPECT_EQ(both, share((summed ? 2 : 3) * travels + 3 * n * k));
      // Of n ranks a rank sends O(1 / sqrt(n)): never above 1 / q of the matrices.
      EXPECT_LT(forward, (travels + n * k) * element / q);
    }
}

}  // namespace
}  // namespace moebius::parallel
