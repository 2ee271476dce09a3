// Result<T>: an expected failure of the world outside (a sensor that is not there, a refused connection, a
// missing permission). The caller decides; nothing is thrown. For bad input throw UserError, for our own bugs
// use CHECK.
//
//   Result<double> read_joules();
//   if (auto joules = read_joules()) use(*joules); else log_warn(joules.error().message);
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <variant>

#include "base/check.h"
#include "base/concat.h"

namespace moebius {

enum class ErrorKind {
  kNotFound,
  kPermission,
  kNoSpace,
  kUnavailable,
  kUnsupported,
  kInvalid,
  kTimeout,
  kOther
};

inline const char* error_kind_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kNotFound:
      return "not found";
    case ErrorKind::kPermission:
      return "permission denied";
    case ErrorKind::kNoSpace:
      return "no space";
    case ErrorKind::kUnavailable:
      return "unavailable";
    case ErrorKind::kUnsupported:
      return "unsupported";
    case ErrorKind::kInvalid:
      return "invalid";
    case ErrorKind::kTimeout:
      return "timed out";
    case ErrorKind::kOther:
      break;
  }
  return "error";
}

struct Error {
  ErrorKind kind = ErrorKind::kOther;
  std::string message;
};

// make_error(ErrorKind::kNotFound, "no RAPL counter under ", path)
template <class... Parts>
Error make_error(ErrorKind kind, const Parts&... parts) {
  return {kind, concat(parts...)};
}

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit, `return value;`
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT: implicit

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // Taking the value of a failure is a bug of the caller.
  T& value() & {
    MOEBIUS_CHECK(ok(), "value() of a failed Result: ", error_text());
    return std::get<0>(state_);
  }
  const T& value() const& {
    MOEBIUS_CHECK(ok(), "value() of a failed Result: ", error_text());
    return std::get<0>(state_);
  }
  T&& value() && {
    MOEBIUS_CHECK(ok(), "value() of a failed Result: ", error_text());
    return std::get<0>(std::move(state_));
  }
  T value_or(T other) const& { return ok() ? std::get<0>(state_) : std::move(other); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  const Error& error() const {
    MOEBIUS_CHECK(!ok(), "error() of a Result that holds a value");
    return std::get<1>(state_);
  }

 private:
  std::string error_text() const { return ok() ? std::string() : std::get<1>(state_).message; }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT: implicit

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    MOEBIUS_CHECK(!ok(), "error() of a Result without one");
    return *error_;
  }

 private:
  std::optional<Error> error_;
};

}  // namespace moebius
