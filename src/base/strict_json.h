// JSON of files that come from elsewhere, parsed strictly: what the library itself lets pass (a key twice in
// an object, of which it keeps the last, and any depth) is refused.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace moebius {

// UserError beginning with `what` ("tokenizer DIR/tokenizer.json") for text that is not JSON, with line and
// column, for an object with one key twice, with the way to it ("in model.vocab"), and for more than 100
// levels.
nlohmann::json parse_strict_json(std::string_view text, const std::string& what);

}  // namespace moebius
