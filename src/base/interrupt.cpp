#include "base/interrupt.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/check.h"

namespace moebius {
namespace {

std::atomic<int> g_signal{0};
std::atomic<bool> g_installed{false};
std::atomic<const char*> g_hint{""};
static_assert(std::atomic<int>::is_always_lock_free, "read and written by a signal handler");

// Only async-signal-safe calls here.
void on_signal(int signal) {
  const int saved_errno = errno;
  int none = 0;
  if (!g_signal.compare_exchange_strong(none, signal)) _exit(128 + signal);
  for (const char* text : {"\n", g_hint.load(), "\n"})
    [[maybe_unused]] const ssize_t ignored = ::write(STDERR_FILENO, text, std::strlen(text));
  errno = saved_errno;
}

}  // namespace

InterruptGuard::InterruptGuard(const char* hint) {
  MOEBIUS_CHECK(!g_installed.exchange(true), "a second InterruptGuard");
  g_hint = hint;
  g_signal = 0;
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigemptyset(&action.sa_mask);
  action.sa_flags = SA_RESTART;  // a write in progress goes on
  sigaction(SIGINT, &action, &previous_int_);
  sigaction(SIGTERM, &action, &previous_term_);
}

InterruptGuard::~InterruptGuard() {
  sigaction(SIGINT, &previous_int_, nullptr);
  sigaction(SIGTERM, &previous_term_, nullptr);
  g_installed = false;
}

bool interrupt_requested() {
  return g_signal.load(std::memory_order_relaxed) != 0;
}

int interrupt_signal() {
  return g_signal.load();
}

void request_interrupt(int signal) {
  int none = 0;
  g_signal.compare_exchange_strong(none, signal);
}

}  // namespace moebius
