#include "config/dump.h"

#include "base/concat.h"
#include "config/fields.h"

namespace moebius::config {
namespace {

constexpr size_t kCommentWidth = 108;

// "# " lines of at most kCommentWidth characters, broken at spaces.
std::string comment(const std::string& text) {
  std::string lines;
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.size();
    if (end - begin > kCommentWidth) {
      const size_t space = text.rfind(' ', begin + kCommentWidth);
      if (space != std::string::npos && space > begin) end = space;
    }
    lines += "# " + text.substr(begin, end - begin) + "\n";
    begin = end + 1;
  }
  return lines;
}

std::string field_comment(const Field& field) {
  std::string notes;
  for (const std::string& note : {field.unit, allowed_text(field)}) {
    if (!note.empty()) notes += (notes.empty() ? "" : "; ") + note;
  }
  return comment(notes.empty() ? field.meaning : concat(field.meaning, " [", notes, "]"));
}

}  // namespace

std::string dump(const RunConfig& config, DumpStyle style) {
  RunConfig copy = config, defaults;
  const auto sections = describe_run(copy);
  const auto default_sections = describe_run(defaults);
  std::string text;
  for (size_t s = 0; s < sections.size(); ++s) {
    const Section& section = sections[s];
    std::string body;
    for (size_t f = 0; f < section.fields.size(); ++f) {
      const std::string value = value_text(section.fields[f]);
      if (style == DumpStyle::kMinimal && value == value_text(default_sections[s].fields[f])) continue;
      if (style == DumpStyle::kFull) body += field_comment(section.fields[f]);
      body += concat(section.fields[f].key, " = ", value, "\n");
    }
    if (body.empty()) continue;
    if (!text.empty()) text += "\n";
    if (style == DumpStyle::kFull) text += comment(section.meaning);
    text += concat("[", section.path, "]\n", body);
  }
  return text;
}

std::vector<Difference> diff(const RunConfig& left, const RunConfig& right, std::string_view prefix) {
  RunConfig left_copy = left, right_copy = right;
  const auto left_sections = describe_run(left_copy);
  const auto right_sections = describe_run(right_copy);
  std::vector<Difference> differences;
  for (size_t s = 0; s < left_sections.size(); ++s) {
    for (size_t f = 0; f < left_sections[s].fields.size(); ++f) {
      const Field& field = left_sections[s].fields[f];
      std::string a = value_text(field), b = value_text(right_sections[s].fields[f]);
      if (field.path.starts_with(prefix) && a != b)
        differences.push_back({field.path, std::move(a), std::move(b)});
    }
  }
  return differences;
}

std::string describe_differences(const std::vector<Difference>& differences) {
  std::string text;
  for (const Difference& each : differences) {
    text += concat(text.empty() ? "" : "\n", "  ", each.path, ": ", each.left, " -> ", each.right);
  }
  return text;
}

}  // namespace moebius::config
