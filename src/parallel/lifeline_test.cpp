#include "parallel/lifeline.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>

#include "base/concat.h"
#include "parallel/test_ranks.h"

namespace moebius::parallel {
namespace {

constexpr double kLong = 60;

TEST(LifelineTest, a_run_that_ends_well_has_no_deaths) {
  std::atomic<int> deaths{0};
  run_ranks(3, kLong, [&](Rendezvous& rendezvous) {
    Lifeline lifeline(rendezvous, [&](const std::string&) { ++deaths; });
    lifeline.leave();
  });
  EXPECT_EQ(deaths, 0);
}

// Any rank, the first included: all others hear of it.
TEST(LifelineTest, a_rank_that_ends_early_is_named_to_all_others) {
  for (int dead = 0; dead < 3; ++dead) {
    std::mutex mutex;
    std::multiset<std::string> heard;
    run_ranks(3, kLong, [&](Rendezvous& rendezvous) {
      const int rank = rendezvous.options().rank;
      auto lifeline = std::make_unique<Lifeline>(rendezvous, [](const std::string&) {});
      rendezvous.meet("all watch");
      if (rank != dead) {
        const auto news = lifeline->death_within(kLong);
        ASSERT_TRUE(news) << rank;
        const std::lock_guard lock(mutex);
        heard.insert(*news);
      } else {
        lifeline.reset();
      }
      rendezvous.meet("all have heard");
    });
    EXPECT_EQ(heard.count(concat("rank ", dead, " of 3 has ended before the run was done")), 2u) << dead;
  }
}

// One that has come to the end waits for the others, and hears when one of them does not come.
TEST(LifelineTest, who_leaves_hears_of_a_rank_that_ends_early) {
  run_ranks(2, kLong, [&](Rendezvous& rendezvous) {
    std::atomic<int> deaths{0};
    auto lifeline = std::make_unique<Lifeline>(rendezvous, [&](const std::string&) { ++deaths; });
    if (rendezvous.options().rank == 1) {
      lifeline.reset();
    } else {
      lifeline->leave();
      EXPECT_TRUE(lifeline->death_within(0));
    }
    rendezvous.meet("end");
  });
}

}  // namespace
}  // namespace moebius::parallel
