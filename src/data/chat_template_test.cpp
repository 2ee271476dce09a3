#include "data/chat_template.h"

#include <ctime>
#include <nlohmann/json.hpp>

#include "data/test_files.h"

namespace moebius::data {
namespace {

using nlohmann::ordered_json;

const ordered_json& golden_chats() {
  static const ordered_json all =
      ordered_json::parse(read_file(source_file("tests/data/chat_templates.json")));
  return all;
}

std::time_t golden_now() {
  std::tm parts{};
  strptime(golden_chats()["now"].get<std::string>().c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  parts.tm_isdst = -1;
  return std::mktime(&parts);
}

std::string render(const std::string& source, const ordered_json& variables = ordered_json::object()) {
  return ChatTemplate(source, "t.jinja").render(variables, golden_now());
}

// The UserError of a template without variables.
std::string template_error_of(const std::string& source) {
  return user_error([&] { render(source); });
}

TEST(ChatTemplate, writes_what_jinja2_writes) {
  for (const auto& each : golden_chats()["templates"]) {
    const ChatTemplate chat(each["template"].get<std::string>(), "t.jinja");
    for (const auto& one : each["cases"]) {
      const std::string name = each["name"].get<std::string>() + " with " + one["variables"].dump();
      if (one.contains("error")) {
        EXPECT_NE(user_error([&] { chat.render(one["variables"], golden_now()); }), "no error")
            << name << ": " << one["error"];
      } else {
        EXPECT_EQ(user_error([&] {
                    EXPECT_EQ(chat.render(one["variables"], golden_now()), one["output"].get<std::string>())
                        << name;
                  }),
                  "no error")
            << name;
      }
    }
  }
}

TEST(ChatTemplate, errors_name_the_line_and_the_construct) {
  EXPECT_EQ(template_error_of("a\n{% if x %}b"),
            "t.jinja, line 2: a block does not end with {% elif %} or {% else %} or {% endif %}");
  EXPECT_EQ(template_error_of("\n{{ x"), "t.jinja, line 2: a tag {{ does not end with }}");
  EXPECT_EQ(template_error_of("{{ 'x }}"), "t.jinja, line 1: a string does not end");
  EXPECT_EQ(template_error_of("{# x"), "t.jinja, line 1: a comment {# does not end with #}");
  EXPECT_EQ(template_error_of("\n\n{{ x y }}"), "t.jinja, line 3: did not expect 'y'");
  EXPECT_EQ(template_error_of("{{ ! }}"), "t.jinja, line 1: '!' is not expected here");
  EXPECT_EQ(template_error_of("{{ 1 + }}"),
            "t.jinja, line 1: expected an expression, found the end of the tag");
  EXPECT_EQ(template_error_of("{% include 'x' %}"),
            "t.jinja, line 1: {% include %} is not expected or not supported here");
  EXPECT_EQ(template_error_of("{% endif %}"),
            "t.jinja, line 1: {% endif %} is not expected or not supported here");
  EXPECT_EQ(template_error_of("{{ 1|shout }}"), "t.jinja, line 1: there is no filter 'shout'");
  EXPECT_EQ(template_error_of("{{ 1 is loud }}"), "t.jinja, line 1: there is no test 'loud'");
  EXPECT_EQ(template_error_of("{{ shout(1) }}"), "t.jinja, line 1: there is no function or macro 'shout'");
  EXPECT_EQ(template_error_of("{{ 'a'.encode() }}"), "t.jinja, line 1: a string has no method 'encode'");
  EXPECT_EQ(template_error_of("{{ [].append(1) }}"), "t.jinja, line 1: a list has no method 'append'");
  EXPECT_EQ(template_error_of("{{ tools.x }}"), "t.jinja, line 1: .x of 'tools', which is undefined");
  EXPECT_EQ(template_error_of("{{ 'a' + none }}"), "t.jinja, line 1: '+' of a string and none");
  EXPECT_EQ(template_error_of("\n{{ raise_exception('roles must alternate') }}"),
            "t.jinja, line 2: the template refuses this conversation: roles must alternate");
  EXPECT_EQ(template_error_of("{{ 1 // 0 }}"), "t.jinja, line 1: a division by zero");
}

TEST(ChatTemplate, templates_that_never_end_are_stopped) {
  EXPECT_EQ(template_error_of("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
            "t.jinja, line 1: macros call each other more than 100 deep");
  EXPECT_EQ(template_error_of("{{ range(10000000) }}"),
            "t.jinja, line 1: a range of more than 100000 numbers");
  EXPECT_EQ(template_error_of("{{ 'x' * 1000000000 }}"), "t.jinja, line 1: a text of more than 64 MiB");
  EXPECT_EQ(template_error_of(std::string("{{ ") + std::string(5000, '(') + "}}"),
            "t.jinja, line 1: expressions are nested too deep");
  std::string sum = "{{ 1";
  for (int i = 0; i < 5000; ++i) sum += " + 1";
  EXPECT_EQ(template_error_of(sum + " }}"), "t.jinja, line 1: an expression has more than 4000 parts");
  std::string blocks;
  for (int i = 0; i < 5000; ++i) blocks += "{% if 1 %}";
  EXPECT_EQ(template_error_of(blocks), "t.jinja, line 1: blocks are nested too deep");
}

TEST(ChatTemplate, comes_from_the_files_of_a_tokenizer) {
  const TemporaryFolder folder;
  EXPECT_FALSE(load_chat_template(folder.path()));
  const std::string source =
      "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}{% if "
      "add_generation_prompt "
      "%}[assistant]{% endif %}";
  const ordered_json config = {{"bos_token", {{"content", "<s>"}}}, {"chat_template", source}};
  write_text(folder / "tokenizer_config.json", config.dump());
  const auto chat = load_chat_template(folder.path());
  ASSERT_TRUE(chat);
  EXPECT_EQ(chat->render_chat({{"system", "Be brief."}, {"user", "Hi"}}, 0),
            "<s>[system]Be brief.[user]Hi[assistant]");
  const ordered_json named = {
      {"chat_template", {{{"name", "rag"}, {"template", "no"}}, {{"name", "default"}, {"template", "yes"}}}}};
  write_text(folder / "tokenizer_config.json", named.dump());
  EXPECT_EQ(load_chat_template(folder.path())->render_chat(std::vector<ChatMessage>{}, 0), "yes");
  write_text(folder / "chat_template.jinja", "{{ messages|length }}\n");
  EXPECT_EQ(load_chat_template(folder.path())->render_chat({{"user", "Hi"}}, 0), "1")
      << "the file of its own counts";
  write_text(folder / "chat_template.jinja", "{{ messages");
  EXPECT_EQ(user_error([&] { load_chat_template(folder.path()); }),
            "chat template " + (folder / "chat_template.jinja").string() +
                ", line 1: a tag {{ does not end with }}");
}

}  // namespace
}  // namespace moebius::data
