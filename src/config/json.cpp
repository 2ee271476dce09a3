#include "config/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "base/distance.h"
#include "base/error.h"

namespace moebius::config {
namespace {

using Json = nlohmann::ordered_json;

std::string shown(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

bool is_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
    const unsigned char lead = byte(i);
    const size_t length = lead < 0x80                   ? 1
                          : lead >= 0xC2 && lead < 0xE0 ? 2
                          : lead >= 0xE0 && lead < 0xF0 ? 3
                          : lead >= 0xF0 && lead < 0xF5 ? 4
                                                        : 0;
    if (length == 0 || i + length > text.size()) return false;
    for (size_t k = 1; k < length; ++k) {
      if ((byte(i + k) & 0xC0) != 0x80) return false;
    }
    const unsigned char second = length > 1 ? byte(i + 1) : 0;
    if ((lead == 0xE0 && second < 0xA0) || (lead == 0xED && second > 0x9F) ||
        (lead == 0xF0 && second < 0x90) || (lead == 0xF4 && second > 0x8F)) {
      return false;
    }
    i += length;
  }
  return true;
}

class Assigner {
 public:
  Assigner(const Field& field, const std::string& where) : field_(field), where_(where) {}

  void set(bool& target, const Json& value) const {
    if (!value.is_boolean()) wrong_kind(value);
    target = value.get<bool>();
  }
  void set(int64_t& target, const Json& value) const {
    if (value.is_number_float()) {  // 1e6 is a float to TOML
      const double number = value.get<double>();
      if (number != std::floor(number) || std::fabs(number) > 9e15) wrong_kind(value);
      target = static_cast<int64_t>(number);
    } else if (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}) {
      wrong_kind(value);
    } else if (value.is_number_integer()) {
      target = value.get<int64_t>();
    } else {
      wrong_kind(value);
    }
    check_range(static_cast<double>(target), value);
  }
  void set(double& target, const Json& value) const {
    if (!value.is_number()) wrong_kind(value);
    const double number = value.get<double>();
    if (!std::isfinite(number)) throw_user_error(subject(value), "; it must be finite", allowed_hint());
    check_range(number, value);
    target = number;
  }
  void set(std::string& target, const Json& value) const {
    if (!value.is_string()) wrong_kind(value);
    const auto& text = value.get_ref<const std::string&>();
    if (!is_utf8(text)) throw_user_error(subject(value), "; it must be valid UTF-8");
    if (!field_.choices.empty() &&
        std::find(field_.choices.begin(), field_.choices.end(), text) == field_.choices.end()) {
      const auto nearest = nearest_name(text, field_.choices);
      throw_user_error(subject(value), "; choose ", join_choices(field_.choices),
                       nearest ? concat(" (did you mean '", *nearest, "'?)") : "");
    }
    target = text;
  }
  template <class T>
  void set(std::vector<T>& target, const Json& value) const {
    if (!value.is_array()) wrong_kind(value);
    std::vector<T> values(value.size());
    for (size_t i = 0; i < value.size(); ++i) set(values[i], value[i]);
    target = std::move(values);
  }

 private:
  std::string subject(const Json& value) const {
    return concat("'", field_.path, "' is ", shown(value), " (", where_, ")");
  }
  std::string allowed_hint() const {
    const std::string allowed = allowed_text(field_);
    return allowed.empty() ? "" : ", allowed: " + allowed;
  }
  [[noreturn]] void wrong_kind(const Json& value) const {
    throw_user_error(subject(value), "; it takes ", kind_name(field_), allowed_hint());
  }
  void check_range(double number, const Json& value) const {
    if (number >= field_.range.min && number <= field_.range.max) return;
    const char* reason = number < field_.range.min ? "below its minimum" : "above its maximum";
    throw_user_error(subject(value), ", ", reason, "; allowed: ", allowed_text(field_));
  }

  const Field& field_;
  const std::string& where_;
};

void read_object(const Json& json, const std::string& prefix, const std::vector<Section>& sections,
                 const std::string& source) {
  for (const auto& [key, value] : json.items()) {
    const std::string path = prefix.empty() ? key : prefix + "." + key;
    if (const Field* field = find_field(sections, path)) {
      assign(*field, value, source);
    } else if (find_section(sections, path) == nullptr) {
      throw_unknown_field(sections, path, source);
    } else if (!value.is_object()) {
      throw_user_error("'", path, "' is ", shown(value), " (", source, "); it is a section, not a field");
    } else {
      read_object(value, path, sections, source);
    }
  }
}

}  // namespace

Json to_json(const RunConfig& config) {
  RunConfig copy = config;
  Json json = Json::object();
  for (const Section& section : describe_run(copy)) {
    Json* object = &json;
    for (size_t begin = 0; begin <= section.path.size();) {
      const size_t end = std::min(section.path.find('.', begin), section.path.size());
      Json& inner = (*object)[section.path.substr(begin, end - begin)];
      if (inner.is_null()) inner = Json::object();
      object = &inner;
      begin = end + 1;
    }
    for (const Field& field : section.fields) {
      std::visit([&](const auto* value) { (*object)[field.key] = *value; }, field.target);
    }
  }
  return json;
}

RunConfig from_json(const Json& json, std::string_view source) {
  RunConfig config;
  const auto sections = describe_run(config);
  if (!json.is_object()) throw_user_error("the config in ", source, " is not a JSON object");
  read_object(json, "", sections, std::string(source));
  return config;
}

void assign(const Field& field, const Json& value, const std::string& where) {
  std::visit([&](auto* target) { Assigner(field, where).set(*target, value); }, field.target);
}

void throw_unknown_field(const std::vector<Section>& sections, std::string_view path,
                         const std::string& where) {
  throw_user_error("unknown field '", path, "' (", where, ");", suggest_field(sections, path));
}

}  // namespace moebius::config
