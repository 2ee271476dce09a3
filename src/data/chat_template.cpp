#include "data/chat_template.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/strict_json.h"
#include "data/bpe/json_fields.h"
#include "data/chat/interpreter.h"
#include "data/chat/syntax.h"
#include "data/text.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// The text of a special token in tokenizer_config.json, given as such or as an object.
std::optional<std::string> token_text(const JsonField& field) {
  if (field.value().is_string()) return field.string();
  if (field.value().is_object()) return field.at("content").string();
  return std::nullopt;
}

// The `chat_template` of tokenizer_config.json: a template, or a list of named ones.
std::optional<std::string> template_of_config(const JsonField& config) {
  const JsonField field = config.find("chat_template");
  if (field.is_null()) return std::nullopt;
  if (!field.value().is_array()) return field.string();
  for (size_t i = 0; i < field.array_size(); ++i) {
    const JsonField named = field.at(i);
    if (named.at("name").string() == "default") return named.at("template").string();
  }
  field.fail("none of which is named \"default\"");
}

}  // namespace

struct ChatTemplate::State {
  std::string where;
  chat::Block block;
  ordered_json special_tokens = ordered_json::object();
};

ChatTemplate::ChatTemplate(const std::string& source, std::string where) : state_(std::make_unique<State>()) {
  state_->where = std::move(where);
  if (first_invalid_utf8(source) < source.size()) throw_user_error(state_->where, " is not UTF-8");
  state_->block = chat::parse_template(source, state_->where);
}
ChatTemplate::~ChatTemplate() = default;
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;

std::string ChatTemplate::render(const ordered_json& variables, std::time_t now) const {
  return chat::run_template(state_->block, state_->where, chat::Value::of_json(variables), now);
}

std::string ChatTemplate::render_chat(const std::vector<ChatMessage>& messages, std::time_t now) const {
  ordered_json variables = state_->special_tokens;
  variables["messages"] = ordered_json::array();
  for (const ChatMessage& message : messages)
    variables["messages"].push_back({{"role", message.role}, {"content", to_valid_utf8(message.content)}});
  variables["add_generation_prompt"] = true;
  variables["tools"] = nullptr;
  variables["documents"] = nullptr;
  return render(variables, now);
}

std::optional<ChatTemplate> load_chat_template(const fs::path& folder) {
  const fs::path jinja = folder / "chat_template.jinja", config_path = folder / "tokenizer_config.json";
  std::optional<std::string> source;
  fs::path source_path = jinja;
  ordered_json tokens = ordered_json::object();
  if (fs::is_regular_file(config_path)) {
    const std::string what = config_path.string();
    const nlohmann::json root = parse_strict_json(read_file(config_path), what);
    const JsonField config(root, what);
    for (const char* name : {"bos_token", "eos_token", "unk_token", "pad_token"})
      if (const auto text = token_text(config.find(name))) tokens[name] = *text;
    source = template_of_config(config);
    source_path = config_path;
  }
  if (fs::is_regular_file(jinja)) {
    source = read_file(jinja);
    source_path = jinja;
  }
  if (!source) return std::nullopt;
  ChatTemplate loaded(*source, "chat template " + source_path.string());
  loaded.state_->special_tokens = std::move(tokens);
  return loaded;
}

}  // namespace moebius::data
