// The description of a RunConfig as a table: what loading, dumping, comparing and documenting walk. Built by
// running the describe() functions of the config structs once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/field.h"
#include "config/train_config.h"

namespace moebius::config {

// Where a field's value lies. Lists are checked element by element.
using Target = std::variant<bool*, int64_t*, double*, std::string*, std::vector<int64_t>*,
                            std::vector<double>*, std::vector<std::string>*>;

struct Field {
  std::string path;  // "model.moe.top_k"
  std::string key;   // "top_k"
  Target target;     // into the config that was described
  Range range;
  std::vector<std::string> choices;  // empty: any text
  std::string unit, meaning;
};

struct Section {
  std::string path;  // "model.moe"
  std::string meaning;
  std::vector<Field> fields;  // its own, not those of nested sections
};

// Sections in the order of description, outer before inner. The targets point into `config`, which must
// outlive it.
std::vector<Section> describe_run(RunConfig& config);

const Field* find_field(const std::vector<Section>& sections, std::string_view path);
const Section* find_section(const std::vector<Section>& sections, std::string_view path);

// "an integer", "a list of numbers".
const char* kind_name(const Field& field);
// "1 to 1000", "at least 0", "fp32 or bf16"; "" when everything of its kind is allowed.
std::string allowed_text(const Field& field);
// The value as TOML writes it: 0.5, true, "text", [1, 2]. Reading it back gives exactly the same value.
std::string value_text(const Field& field);
// A quoted TOML string.
std::string toml_string(std::string_view text);

// "a, b or c"
std::string join_choices(const std::vector<std::string>& choices);

// " did you mean 'train.steps'?" or, when no name is near, which names there are. `path` is the unknown
// dotted name.
std::string suggest_field(const std::vector<Section>& sections, std::string_view path);

}  // namespace moebius::config
