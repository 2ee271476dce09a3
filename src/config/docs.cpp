#include "config/docs.h"

#include "base/concat.h"
#include "config/fields.h"

namespace moebius::config {
namespace {

// A table cell: no bars, no line breaks.
std::string cell(const std::string& text) {
  std::string escaped;
  for (const char c : text) {
    if (c == '|') escaped += '\\';
    escaped += c == '\n' ? ' ' : c;
  }
  return escaped;
}

}  // namespace

std::string markdown_reference() {
  RunConfig defaults;
  std::string text =
      "<!-- Generated from src/config by `moebius train --dump-config docs`; do not edit. -->\n"
      "# Configuration\n\n"
      "A run is described by a TOML file; every field has a default and may be left out. On the command "
      "line\n"
      "`--set section.field=value` overrides the file, and `--dump-config full` or `minimal` prints what "
      "came out.\n"
      "Unknown fields and values out of range are errors. Text needs no quotes after `--set`, and a list may "
      "be\n"
      "written as `a,b`.\n";
  for (const Section& section : describe_run(defaults)) {
    text += concat("\n## [", section.path, "]\n\n", section.meaning, "\n");
    if (section.fields.empty()) continue;
    text += "\n| field | default | unit | allowed | meaning |\n|---|---|---|---|---|\n";
    for (const Field& field : section.fields) {
      const std::string allowed = allowed_text(field);
      text += concat("| `", field.key, "` | `", cell(value_text(field)), "` | ", field.unit, " | ",
                     cell(allowed.empty() ? kind_name(field) : allowed), " | ", cell(field.meaning), " |\n");
    }
  }
  return text;
}

}  // namespace moebius::config
