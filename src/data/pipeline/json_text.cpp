#include "data/pipeline/json_text.h"

#include <simdjson.h>

#include "base/concat.h"

namespace moebius::data {
namespace {

const char* kind_name(simdjson::dom::element_type type) {
  using simdjson::dom::element_type;
  switch (type) {
    case element_type::ARRAY:
      return "a list";
    case element_type::OBJECT:
      return "an object";
    case element_type::STRING:
      return "text";
    case element_type::BOOL:
      return "true or false";
    case element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

}  // namespace

struct JsonText::Parser {
  simdjson::dom::parser dom;
};

JsonText::JsonText(std::string field) : field_(std::move(field)), parser_(std::make_unique<Parser>()) {}
JsonText::~JsonText() = default;

std::string_view JsonText::find(std::string_view line, std::string& problem) {
  problem.clear();
  simdjson::dom::element root, value;
  if (const auto error = parser_->dom.parse(line.data(), line.size()).get(root)) {
    problem = concat("not valid JSON (", simdjson::error_message(error), ")");
    return {};
  }
  if (!root.is_object()) {
    problem = concat("is ", kind_name(root.type()), ", expected an object");
    return {};
  }
  const auto found = field_.starts_with('/') ? root.at_pointer(field_) : root.at_key(field_);
  if (found.get(value) != simdjson::SUCCESS) {
    problem = concat("has no field '", field_, "'");
    return {};
  }
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS)
    problem = concat("field '", field_, "' is ", kind_name(value.type()), ", expected text");
  return text;
}

}  // namespace moebius::data
