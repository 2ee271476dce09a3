// Chat templates: how a model wants a conversation written, as Jinja in tokenizer_config.json or
// chat_template.jinja. Moebius interprets the part of Jinja that the templates of the model families use,
// with the settings of `transformers` (docs/tokenizers.md lists it).
#pragma once

#include <ctime>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moebius::data {

struct ChatMessage {
  std::string role;  // "system", "user", "assistant"
  std::string content;
};

// Immutable; may be used from several threads at once.
class ChatTemplate {
 public:
  // `where` begins messages ("chat template DIR/chat_template.jinja"). UserError with the line for what is
  // not a template or not supported.
  ChatTemplate(const std::string& source, std::string where);
  ~ChatTemplate();
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;

  // The text for `variables`, an object with what templates ask for: messages, add_generation_prompt,
  // bos_token, … `now` is what strftime_now sees. UserError with the line where the template cannot go on or
  // refuses the conversation (raise_exception).
  std::string render(const nlohmann::ordered_json& variables, std::time_t now) const;

  // The conversation, ready for the model to answer. Special tokens come from the files that the template was
  // loaded with.
  std::string render_chat(const std::vector<ChatMessage>& messages, std::time_t now) const;

 private:
  friend std::optional<ChatTemplate> load_chat_template(const std::filesystem::path& folder);
  struct State;
  std::unique_ptr<State> state_;
};

// The template of a folder with a tokenizer: chat_template.jinja, else `chat_template` of
// tokenizer_config.json (of several the one named "default"); nullopt when there is none.
std::optional<ChatTemplate> load_chat_template(const std::filesystem::path& folder);

}  // namespace moebius::data
