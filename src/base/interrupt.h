// SIGINT and SIGTERM: the first one sets a flag that the training loop polls (finish the step, save, exit 0);
// the second ends the process at once with 128 + signal (130, 143), which is safe because every write is
// atomic.
#pragma once

#include <csignal>

namespace moebius {

// Installs the handlers for its lifetime and clears the flag; restores the previous handlers at the end. One
// at a time.
class InterruptGuard {
 public:
  // `hint`: what is said at the first signal.
  explicit InterruptGuard(const char* hint = "stopping after this step and saving; once more stops at once");
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

 private:
  struct sigaction previous_int_ {};
  struct sigaction previous_term_ {};
};

// True after the first signal (or request_interrupt). Any thread.
bool interrupt_requested();
// The signal that came first; 0 when none came.
int interrupt_signal();
// As if the signal had come; for code that wants the same orderly end.
void request_interrupt(int signal = SIGINT);

}  // namespace moebius
