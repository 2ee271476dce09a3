#include "parallel/turns.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace moebius::parallel {
namespace {

TEST(Turns, go_round_among_those_that_are_left) {
  std::string order;
  const auto body = [&](char name, int passes) {
    return [&order, name, passes] {
      for (int i = 0; i < passes; ++i) {
        order += name;
        pass_turn();
      }
      order += name;
    };
  };
  take_turns({body('a', 1), body('b', 3), body('c', 0)});
  EXPECT_EQ(order, "abcabbb");
  pass_turn();  // nothing outside
}

TEST(Turns, keep_whether_gradients_are_wanted) {
  std::string order;
  take_turns({[&] {
                const at::NoGradGuard no_grad;
                pass_turn();
                EXPECT_FALSE(at::GradMode::is_enabled());
              },
              [&] {
                EXPECT_TRUE(at::GradMode::is_enabled());
                pass_turn();
                EXPECT_TRUE(at::GradMode::is_enabled());
              }});
  EXPECT_TRUE(at::GradMode::is_enabled());
}

TEST(Turns, autograd_takes_them_backwards) {
  // Each pass is x * a, then a turn later * b: the backward pass goes 2b, 1b, 2a, 1a.
  std::string order;
  const at::Tensor x = at::ones({1}).requires_grad_(true);
  const auto noting = [&](const at::Tensor& y, const std::string& name) {
    y.register_hook([&order, name](const at::Tensor&) { order += name + ' '; });
    return y;
  };
  std::vector<at::Tensor> y(2);
  const auto body = [&](size_t i) {
    return [&, i] {
      y[i] = noting(x * 2, std::to_string(i + 1) + "a");
      pass_turn();
      y[i] = noting(y[i] * 3, std::to_string(i + 1) + "b");
    };
  };
  take_turns({body(0), body(1)});
  (y[0] + y[1]).backward();
  EXPECT_EQ(order, "2b 1b 2a 1a ");
  EXPECT_EQ(x.grad().item<float>(), 12);
}

TEST(Turns, an_error_unwinds_the_others_and_is_thrown_again) {
  struct Noting {
    bool& is_gone;
    ~Noting() { is_gone = true; }
  };
  bool first_is_gone = false, third_began = false;
  try {
    take_turns({[&] {
                  const Noting noting{first_is_gone};
                  pass_turn();
                  ADD_FAILURE() << "goes on";
                },
                [] { throw std::runtime_error("out of coffee"); }, [&] { third_began = true; }});
    FAIL() << "no error";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "out of coffee");
  }
  EXPECT_TRUE(first_is_gone);
  EXPECT_FALSE(third_began);
  take_turns({[] {}, [] { pass_turn(); }});
}

}  // namespace
}  // namespace moebius::parallel
