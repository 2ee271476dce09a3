// A RunConfig as JSON (checkpoint manifests, `--json` outputs): nested objects by section, every field
// present.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "config/fields.h"

namespace moebius::config {

nlohmann::ordered_json to_json(const RunConfig& config);

// Fields that are absent keep their defaults; unknown, mistyped and out-of-range ones are a UserError that
// names `source`. Cross-field rules are not checked (see validate.h).
RunConfig from_json(const nlohmann::ordered_json& json, std::string_view source);

// Sets one field after checking kind, range and choices; `where` ("configs/x.toml:7") goes into the
// UserError.
void assign(const Field& field, const nlohmann::ordered_json& value, const std::string& where);

// UserError for a name that no field has.
[[noreturn]] void throw_unknown_field(const std::vector<Section>& sections, std::string_view path,
                                      const std::string& where);

}  // namespace moebius::config
