// The three kinds of failure, never mixed (docs/architecture.md, "Errors"):
//   UserError  bad input: names the thing, its value, the reason and the way out. The program exits with
//   code 2. CHECK      a broken invariant of our own code (base/check.h). Result<T>  an expected failure of
//   the world outside: network, permission, missing sensor (base/result.h).
#pragma once

#include <stdexcept>
#include <string>

#include "base/concat.h"

namespace moebius {

// Exit codes of the program.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailure = 1;
inline constexpr int kExitUserError = 2;

class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// throw_user_error("moe.top_k is ", k, " but there are only ", e, " experts; lower moe.top_k or raise
// moe.experts");
template <class... Parts>
[[noreturn]] void throw_user_error(const Parts&... parts) {
  throw UserError(concat(parts...));
}

}  // namespace moebius
