#include "config/fields.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <type_traits>

#include "base/check.h"
#include "base/concat.h"
#include "base/distance.h"

namespace moebius::config {
namespace {

class Describer {
 public:
  explicit Describer(std::vector<Section>& sections) : sections_(sections) {}

  template <class T>
  void field(const char* key, T& value, const Range& range, const char* unit, const char* meaning) {
    add({path_of(key), key, &value, range, {}, unit, meaning});
  }
  void field(const char* key, std::string& value, const Choices& choices, const char* unit,
             const char* meaning) {
    add({path_of(key), key, &value, {}, choices.values, unit, meaning});
  }
  template <class T>
  void section(const char* key, T& value, const char* meaning) {
    const size_t outer = current_;
    sections_.push_back({path_of(key), meaning, {}});
    current_ = sections_.size() - 1;
    describe(*this, value);
    current_ = outer;
  }

 private:
  static constexpr size_t kTop = static_cast<size_t>(-1);

  std::string path_of(const char* key) const {
    return current_ == kTop ? std::string(key) : sections_[current_].path + "." + key;
  }
  void add(Field field) {
    MOEBIUS_CHECK(current_ != kTop, "field '", field.key, "' outside of a section");
    sections_[current_].fields.push_back(std::move(field));
  }

  std::vector<Section>& sections_;
  size_t current_ = kTop;
};

// Shortest text that reads back as the same double, always with a point or an exponent (else TOML reads an
// integer).
std::string number_text(double value) {
  char text[64];
  const auto end = std::to_chars(text, text + sizeof text, value).ptr;
  std::string result(text, end);
  if (result.find_first_of(".en") == std::string::npos) result += ".0";
  return result;
}

std::string bound_text(double value) {
  return std::fabs(value) < 1e15 && value == std::floor(value) ? std::to_string(static_cast<int64_t>(value))
                                                               : number_text(value);
}

std::string element_text(bool value) {
  return value ? "true" : "false";
}
std::string element_text(int64_t value) {
  return std::to_string(value);
}
std::string element_text(double value) {
  return number_text(value);
}
std::string element_text(const std::string& value) {
  return toml_string(value);
}
template <class T>
std::string element_text(const std::vector<T>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size(); ++i) text += (i > 0 ? ", " : "") + element_text(values[i]);
  return text + "]";
}

std::string_view last_part(std::string_view path) {
  return path.substr(path.rfind('.') + 1);
}

}  // namespace

std::vector<Section> describe_run(RunConfig& config) {
  std::vector<Section> sections;
  Describer describer(sections);
  describe(describer, config);
  return sections;
}

const Section* find_section(const std::vector<Section>& sections, std::string_view path) {
  for (const Section& section : sections) {
    if (section.path == path) return &section;
  }
  return nullptr;
}

const Field* find_field(const std::vector<Section>& sections, std::string_view path) {
  for (const Section& section : sections) {
    for (const Field& field : section.fields) {
      if (field.path == path) return &field;
    }
  }
  return nullptr;
}

const char* kind_name(const Field& field) {
  static constexpr const char* kNames[] = {"true or false",    "an integer",         "a number",
                                           "a string",         "a list of integers", "a list of numbers",
                                           "a list of strings"};
  return kNames[field.target.index()];
}

std::string join_choices(const std::vector<std::string>& choices) {
  std::string text;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += i + 1 == choices.size() ? " or " : ", ";
    text += choices[i];
  }
  return text;
}

std::string allowed_text(const Field& field) {
  if (!field.choices.empty()) return join_choices(field.choices);
  const bool lower = field.range.min > Range{}.min, upper = field.range.max < Range{}.max;
  if (lower && upper) return concat(bound_text(field.range.min), " to ", bound_text(field.range.max));
  if (lower) return "at least " + bound_text(field.range.min);
  if (upper) return "at most " + bound_text(field.range.max);
  return "";
}

std::string value_text(const Field& field) {
  return std::visit([](const auto* value) { return element_text(*value); }, field.target);
}

std::string toml_string(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    switch (c) {
      case '"':
        quoted += "\\\"";
        break;
      case '\\':
        quoted += "\\\\";
        break;
      case '\n':
        quoted += "\\n";
        break;
      case '\r':
        quoted += "\\r";
        break;
      case '\t':
        quoted += "\\t";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
          char code[8];
          std::snprintf(code, sizeof code, "\\u%04X", static_cast<unsigned>(c));
          quoted += code;
        } else {
          quoted += c;
        }
    }
  }
  return quoted + "\"";
}

std::string suggest_field(const std::vector<Section>& sections, std::string_view path) {
  std::vector<std::string> names;
  for (const Section& section : sections) {
    names.push_back(section.path);
    for (const Field& field : section.fields) names.push_back(field.path);
  }
  const auto mean = [](const std::string& name) { return concat(" did you mean '", name, "'?"); };
  // A small slip in the whole name; then a right name in the wrong section; then a larger slip.
  const auto nearest = nearest_name(path, names);
  if (nearest && edit_distance(path, *nearest) <= std::min<size_t>(2, path.size() / 3)) return mean(*nearest);
  for (const std::string& name : names) {
    if (name.ends_with("." + std::string(path))) return mean(name);
  }
  for (const std::string& name : names) {
    if (last_part(name) == last_part(path)) return mean(name);
  }
  if (nearest) return mean(*nearest);
  const size_t dot = path.rfind('.');
  const Section* section =
      dot == std::string_view::npos ? nullptr : find_section(sections, path.substr(0, dot));
  std::string list;
  if (section == nullptr) {
    for (const Section& each : sections) list += (list.empty() ? "" : ", ") + each.path;
    return " the sections are " + list;
  }
  for (const Field& field : section->fields) list += (list.empty() ? "" : ", ") + field.key;
  return concat(" the fields of [", section->path, "] are ", list);
}

}  // namespace moebius::config
