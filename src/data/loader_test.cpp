#include "data/loader.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>

namespace moebius::data {
namespace {

// One sequence of one token that tells step and micro-batch.
class Numbered : public BatchSource {
 public:
  explicit Numbered(std::atomic<int64_t>* filled, int64_t fail_at_step = -1)
      : filled_(filled), fail_at_(fail_at_step) {}
  void fill(int64_t step, int64_t micro, Batch& batch) override {
    if (step == fail_at_) throw std::runtime_error("no more text");
    const int32_t text[] = {static_cast<int32_t>(step * 10 + micro), 0};
    batch.add_sequence(text, 1, {});
    ++*filled_;
  }

 private:
  std::atomic<int64_t>* filled_;
  int64_t fail_at_;
};

TEST(Loader, delivers_every_micro_batch_in_order_from_the_first_step) {
  std::atomic<int64_t> filled = 0;
  Loader loader(std::make_unique<Numbered>(&filled), {.first_step = 7, .micro_batches = 3, .depth = 4});
  for (int64_t i = 0; i < 300; ++i) {
    const Batch& batch = loader.next();
    ASSERT_EQ(batch.step, 7 + i / 3);
    ASSERT_EQ(batch.micro, i % 3);
    ASSERT_EQ(batch.tokens.at(0), batch.step * 10 + batch.micro);
    ASSERT_EQ(batch.num_tokens(), 1) << "a reused batch starts empty";
  }
  EXPECT_GE(loader.wait_seconds(), 0);
}

TEST(Loader, makes_depth_batches_ahead_and_no_more) {
  std::atomic<int64_t> filled = 0;
  Loader loader(std::make_unique<Numbered>(&filled), {.first_step = 0, .micro_batches = 1, .depth = 3});
  loader.next();
  while (filled < 4) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(filled, 4) << "the one handed out and three ahead";
}

TEST(Loader, an_exception_arrives_after_the_batches_before_it_and_stays) {
  std::atomic<int64_t> filled = 0;
  Loader loader(std::make_unique<Numbered>(&filled, 2), {.first_step = 0, .micro_batches = 1, .depth = 5});
  EXPECT_EQ(loader.next().step, 0);
  EXPECT_EQ(loader.next().step, 1);
  for (int i = 0; i < 2; ++i) {
    try {
      loader.next();
      FAIL() << "no exception";
    } catch (const std::runtime_error& error) {
      EXPECT_STREQ(error.what(), "no more text");
    }
  }
}

TEST(Loader, stops_at_once_whatever_it_is_doing) {
  std::atomic<int64_t> filled = 0;
  for (int64_t i = 0; i < 50; ++i) {
    Loader loader(std::make_unique<Numbered>(&filled, i % 5),
                  {.first_step = 0, .micro_batches = 1, .depth = 1 + i % 3});
    if (i % 5 > 0 && i % 2) loader.next();
  }
}

}  // namespace
}  // namespace moebius::data
