#include "data/bpe/normalizer.h"

#include <algorithm>
#include <utility>

#include "data/bpe/normal_form.h"

namespace moebius::data {

std::string replace_all(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  size_t at = 0;
  while (!pattern.empty()) {
    const size_t found = text.find(pattern, at);
    if (found == std::string_view::npos) break;
    out.append(text, at, found - at);
    out.append(content);
    at = found + pattern.size();
  }
  out.append(text, at);
  return out;
}

std::string Normalizer::space_symbol() const {
  for (const NormalizerStep& step : steps_)
    if (step.kind == NormalizerStep::Kind::kReplace && step.pattern == " ") return step.content;
  return "";
}

bool Normalizer::keeps_lines_apart() const {
  return std::all_of(steps_.begin(), steps_.end(), [](const NormalizerStep& step) {
    return step.kind == NormalizerStep::Kind::kFormC || step.kind == NormalizerStep::Kind::kPrepend ||
           (step.kind == NormalizerStep::Kind::kReplace && step.pattern.find('\n') == std::string::npos);
  });
}

std::string_view Normalizer::apply(std::string_view text, bool continued, std::string& storage) const {
  using Kind = NormalizerStep::Kind;
  std::string next;
  for (const NormalizerStep& step : steps_) {
    switch (step.kind) {
      case Kind::kPrepend:
        if (continued || text.empty()) continue;
        next = step.content;
        next.append(text);
        break;
      case Kind::kReplace:
        if (text.find(step.pattern) == std::string_view::npos) continue;
        next = replace_all(text, step.pattern, step.content);
        break;
      case Kind::kReplaceRegex: {
        const auto matches = RegexSearch(*step.regex, text).find_all();
        if (matches.empty()) continue;
        next.clear();
        size_t at = 0;
        for (const auto& [begin, end] : matches) {
          next.append(text, at, begin - at);
          next.append(step.content);
          at = end;
        }
        next.append(text, at);
        break;
      }
      case Kind::kFormC: {
        const size_t same = normal_form_c_prefix(text);
        if (same == text.size()) continue;
        next.assign(text, 0, same);
        next += normal_form_c(text.substr(same));
        break;
      }
    }
    storage.swap(next);
    text = storage;
  }
  return text;
}

}  // namespace moebius::data
