#include "parallel/turns.h"

#include <c10/core/AutogradState.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <exception>
#include <memory>

#include "base/check.h"
#include "telemetry/trace.h"

#if defined(__SANITIZE_ADDRESS__)
#define MOEBIUS_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define MOEBIUS_ADDRESS_SANITIZER 1
#endif
#endif
#ifdef MOEBIUS_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace moebius::parallel {
namespace {

constexpr size_t kStackBytes = size_t{8} << 20;  // as a thread's; only what is touched takes memory

class Stack {
 public:
  Stack() : guard_(static_cast<size_t>(::sysconf(_SC_PAGESIZE))) {
    memory_ = ::mmap(nullptr, kStackBytes + guard_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    MOEBIUS_CHECK(memory_ != MAP_FAILED, "a stack of ", kStackBytes, " bytes: ", std::strerror(errno));
    MOEBIUS_CHECK_EQ(::mprotect(memory_, guard_, PROT_NONE), 0, std::strerror(errno));
  }
  ~Stack() { ::munmap(memory_, kStackBytes + guard_); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  void* begin() const { return static_cast<char*>(memory_) + guard_; }

 private:
  size_t guard_;
  void* memory_;
};

// Ends a body whose fellow has failed.
struct Abandoned {};

class Round {
 public:
  explicit Round(const std::vector<std::function<void()>>& bodies) {
    for (const std::function<void()>& body : bodies) {
      turns_.push_back(std::make_unique<Turn>());
      turns_.back()->body = &body;
    }
  }

  void run();
  void pass() {
    if (fails_) throw Abandoned();
    Turn& own = *current_;
    own.autograd = c10::AutogradState::get_tls_state();
    leave(own.own_fake_stack, &own.context, &main_, main_stack_, main_stack_bytes_);
    arrive(own.own_fake_stack);
    c10::AutogradState::set_tls_state(own.autograd);
    if (fails_) throw Abandoned();
  }

 private:
  struct Turn {
    const std::function<void()>* body = nullptr;
    Stack stack;
    ucontext_t context{};
    void* own_fake_stack = nullptr;
    c10::AutogradState autograd = c10::AutogradState::get_tls_state();
    bool is_done = false;
  };

  // The sanitizer is told which stack is in use.
  static void leave(void*& fake_stack, ucontext_t* from, ucontext_t* to, const void* stack, size_t bytes) {
#ifdef MOEBIUS_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(&fake_stack, stack, bytes);
#else
    (void)fake_stack, (void)stack, (void)bytes;
#endif
    ::swapcontext(from, to);
  }
  void arrive(void* fake_stack) {
#ifdef MOEBIUS_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake_stack, &main_stack_, &main_stack_bytes_);
#else
    (void)fake_stack;
#endif
  }

  static void enter();
  void resume(Turn& turn) {
    current_ = &turn;
    leave(main_fake_stack_, &main_, &turn.context, turn.stack.begin(), kStackBytes);
#ifdef MOEBIUS_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(main_fake_stack_, nullptr, nullptr);
#endif
    current_ = nullptr;
  }

  std::vector<std::unique_ptr<Turn>> turns_;
  Turn* current_ = nullptr;
  ucontext_t main_{};
  void* main_fake_stack_ = nullptr;
  const void* main_stack_ = nullptr;
  size_t main_stack_bytes_ = 0;
  bool fails_ = false;
  std::exception_ptr error_;
};

thread_local Round* round_of_thread = nullptr;

void Round::enter() {
  Round& round = *round_of_thread;
  Turn& own = *round.current_;
  round.arrive(nullptr);
  if (!round.fails_) {
    try {
      (*own.body)();
    } catch (const Abandoned&) {
    } catch (...) {
      round.error_ = std::current_exception();
      round.fails_ = true;
    }
  }
  own.is_done = true;
#ifdef MOEBIUS_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(nullptr, round.main_stack_, round.main_stack_bytes_);
#endif
  ::setcontext(&round.main_);
}

void Round::run() {
  const c10::AutogradState before = c10::AutogradState::get_tls_state();
  for (const auto& turn : turns_) {
    MOEBIUS_CHECK_EQ(::getcontext(&turn->context), 0);
    turn->context.uc_stack.ss_sp = turn->stack.begin();
    turn->context.uc_stack.ss_size = kStackBytes;
    turn->context.uc_link = nullptr;
    ::makecontext(&turn->context, &Round::enter, 0);
  }
  round_of_thread = this;
  bool is_any_left = true;
  while (is_any_left) {
    is_any_left = false;
    for (size_t i = 0; i < turns_.size(); ++i) {
      if (turns_[i]->is_done) continue;
      {
        const telemetry::Span span("turn", "parallel", static_cast<int64_t>(i));
        resume(*turns_[i]);
      }
      c10::AutogradState::set_tls_state(before);
      is_any_left = is_any_left || !turns_[i]->is_done;
    }
  }
  round_of_thread = nullptr;
  if (error_ != nullptr) std::rethrow_exception(error_);
}

}  // namespace

void take_turns(const std::vector<std::function<void()>>& bodies) {
  MOEBIUS_CHECK(round_of_thread == nullptr, "turns within a turn");
  Round(bodies).run();
}

void pass_turn() {
  if (round_of_thread != nullptr) round_of_thread->pass();
}

}  // namespace moebius::parallel
