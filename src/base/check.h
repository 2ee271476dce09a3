// CHECK: states an invariant of our own code. A failure throws InternalError with the expression, both values
// where there are two, and the location. Never for user input (that is UserError).
#pragma once

#include <stdexcept>
#include <string>

#include "base/concat.h"

namespace moebius {

class InternalError : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] inline void check_failed(const char* file, int line, const std::string& message) {
  throw InternalError(concat(file, ":", line, ": ", message, " (this is a bug in moebius)"));
}

}  // namespace moebius

#define MOEBIUS_CHECK(condition, ...)                                                     \
  do {                                                                                    \
    if (!(condition)) [[unlikely]]                                                        \
      ::moebius::check_failed(                                                            \
          __FILE__, __LINE__,                                                             \
          ::moebius::concat("check failed: " #condition " " __VA_OPT__(, ) __VA_ARGS__)); \
  } while (false)

#define MOEBIUS_CHECK_OP(a, op, b, ...)                                                                     \
  do {                                                                                                      \
    const auto& moebius_a = (a);                                                                            \
    const auto& moebius_b = (b);                                                                            \
    if (!(moebius_a op moebius_b)) [[unlikely]]                                                             \
      ::moebius::check_failed(__FILE__, __LINE__,                                                           \
                              ::moebius::concat("check failed: " #a " " #op " " #b " (", moebius_a, " vs ", \
                                                moebius_b, ") " __VA_OPT__(, ) __VA_ARGS__));               \
  } while (false)

#define MOEBIUS_CHECK_EQ(a, b, ...) MOEBIUS_CHECK_OP(a, ==, b __VA_OPT__(, ) __VA_ARGS__)
#define MOEBIUS_CHECK_LE(a, b, ...) MOEBIUS_CHECK_OP(a, <=, b __VA_OPT__(, ) __VA_ARGS__)
#define MOEBIUS_CHECK_LT(a, b, ...) MOEBIUS_CHECK_OP(a, <, b __VA_OPT__(, ) __VA_ARGS__)
#define MOEBIUS_CHECK_GE(a, b, ...) MOEBIUS_CHECK_OP(a, >=, b __VA_OPT__(, ) __VA_ARGS__)
