// Runs a parsed template.
#pragma once

#include <ctime>
#include <string>

#include "data/chat/syntax.h"
#include "data/chat/value.h"

namespace moebius::data::chat {

// `variables` is a mapping; `now` is what strftime_now sees. UserError with the line for what the template
// cannot do with them, and for raise_exception.
std::string run_template(const Block& block, const std::string& where, const Value& variables,
                         std::time_t now);

}  // namespace moebius::data::chat
