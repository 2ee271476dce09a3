// The reference of all fields, as committed in docs/configuration.md.
#pragma once

#include <string>

namespace moebius::config {

std::string markdown_reference();

}  // namespace moebius::config
