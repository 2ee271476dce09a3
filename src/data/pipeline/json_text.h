// The text of one JSON object.
#pragma once

#include <memory>
#include <string>
#include <string_view>

namespace moebius::data {

// Parsing is simdjson's (Langdale and Lemire 2019), strict as RFC 8259. One thread at a time.
class JsonText {
 public:
  // `field` is the name of a member, or a JSON pointer (RFC 6901) when it begins with '/'.
  explicit JsonText(std::string field);
  ~JsonText();

  // The string in the field of the object `line`, valid until the next call; otherwise `problem` says why
  // there is none.
  std::string_view find(std::string_view line, std::string& problem);

 private:
  struct Parser;
  std::string field_;
  std::unique_ptr<Parser> parser_;
};

}  // namespace moebius::data
