#include "config/load.h"

#include <toml++/toml.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <utility>

#include "base/concat.h"
#include "base/error.h"
#include "base/file.h"
#include "config/json.h"
#include "config/validate.h"

namespace moebius::config {
namespace {

using Json = nlohmann::ordered_json;

Json to_value(const toml::node& node) {
  if (const auto* value = node.as_boolean()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* values = node.as_array()) {
    Json list = Json::array();
    for (const toml::node& element : *values) list.push_back(to_value(element));
    return list;
  }
  // Dates and tables: no field takes one; their text goes into the message of the wrong kind.
  std::ostringstream text;
  if (const auto* table = node.as_table()) {
    Json object = Json::object();
    for (const auto& [key, value] : *table) object[std::string(key.str())] = to_value(value);
    return object;
  }
  node.visit([&](const auto& value) {
    if constexpr (toml::is_date<decltype(value)> || toml::is_time<decltype(value)> ||
                  toml::is_date_time<decltype(value)>) {
      text << value.get();
    }
  });
  return Json::object({{"date", text.str()}});
}

struct Mistake {
  toml::source_index line;
  std::string message;
};

class TomlReader {
 public:
  TomlReader(RunConfig& config, const std::string& source)
      : sections_(describe_run(config)), source_(source) {}

  void read(const toml::table& table) {
    read_table(table, "");
    if (mistakes_.empty()) return;
    std::stable_sort(mistakes_.begin(), mistakes_.end(),
                     [](const Mistake& a, const Mistake& b) { return a.line < b.line; });
    std::string text;
    for (const Mistake& mistake : mistakes_) text += (text.empty() ? "" : "\n") + mistake.message;
    throw UserError(text);
  }

 private:
  void read_table(const toml::table& table, const std::string& prefix) {
    for (const auto& [key, node] : table) {
      const std::string path = prefix.empty() ? std::string(key.str()) : concat(prefix, ".", key.str());
      const toml::source_index line = key.source().begin.line;
      try {
        read_node(path, node, concat(source_, ":", line));
      } catch (const UserError& error) {
        mistakes_.push_back({line, error.what()});
      }
    }
  }

  void read_node(const std::string& path, const toml::node& node, const std::string& where) {
    if (const Field* field = find_field(sections_, path)) {
      assign(*field, to_value(node), where);
    } else if (find_section(sections_, path) == nullptr) {
      throw_unknown_field(sections_, path, where);
    } else if (const auto* table = node.as_table()) {
      read_table(*table, path);
    } else {
      throw_user_error("'", path, "' (", where, ") is a section, not a field; write [", path,
                       "] on a line of its own and its fields below");
    }
  }

  std::vector<Section> sections_;
  const std::string& source_;
  std::vector<Mistake> mistakes_;
};

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return "";
  return std::string(text.substr(begin, text.find_last_not_of(" \t") - begin + 1));
}

std::optional<Json> parse_toml_value(const std::string& text) {
  try {
    const toml::table table = toml::parse("value = " + text);
    return table.size() == 1 ? std::optional(to_value(*table.get("value"))) : std::nullopt;
  } catch (const toml::parse_error&) {
    return std::nullopt;
  }
}

// A value from the command line, where quotes and brackets may be missing.
Json parse_override(const Field& field, const std::string& text) {
  const auto scalar = [](const std::string& word, bool is_text) -> Json {
    const bool quoted = !word.empty() && (word[0] == '"' || word[0] == '\'');
    if (is_text && !quoted) return word;
    return parse_toml_value(word).value_or(Json(word));
  };
  const bool is_list = field.target.index() >= 4;
  const bool is_text = std::holds_alternative<std::string*>(field.target) ||
                       std::holds_alternative<std::vector<std::string>*>(field.target);
  if (!is_list) return scalar(text, is_text);
  std::string inner = text;
  if (text.starts_with('[') && text.ends_with(']')) {
    if (auto value = parse_toml_value(text)) return *value;
    inner = text.substr(1, text.size() - 2);
  } else if (text.starts_with('"') || text.starts_with('\'')) {
    if (auto value = parse_toml_value("[" + text + "]")) return *value;
  }
  Json list = Json::array();
  std::istringstream parts(inner);
  for (std::string part; std::getline(parts, part, ',');) list.push_back(scalar(trimmed(part), is_text));
  return list;
}

}  // namespace

void apply_overrides(RunConfig& config, const std::vector<std::string>& overrides) {
  const auto sections = describe_run(config);
  for (const std::string& each : overrides) {
    const size_t equals = each.find('=');
    if (equals == std::string::npos || equals == 0) {
      throw_user_error("--set ", each, " has no value; write it as --set train.steps=200");
    }
    const std::string path = trimmed(std::string_view(each).substr(0, equals));
    const std::string where = "--set " + each;
    const Field* field = find_field(sections, path);
    if (field == nullptr && find_section(sections, path) != nullptr) {
      throw_user_error("'", path, "' (", where, ") is a section; name one of its fields, as ", path, ".",
                       find_section(sections, path)->fields.front().key);
    }
    if (field == nullptr) throw_unknown_field(sections, path, where);
    assign(*field, parse_override(*field, trimmed(std::string_view(each).substr(equals + 1))), where);
  }
}

RunConfig parse_run_config(std::string_view text, const std::string& source,
                           const std::vector<std::string>& overrides) {
  RunConfig config;
  try {
    TomlReader(config, source).read(toml::parse(text, source));
  } catch (const toml::parse_error& error) {
    throw_user_error(source, ":", error.source().begin.line, ":", error.source().begin.column,
                     ": not valid TOML: ", error.description());
  }
  apply_overrides(config, overrides);
  validate(config);
  return config;
}

RunConfig load_run_config(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  return parse_run_config(read_file(path), path.string(), overrides);
}

}  // namespace moebius::config
