#include "train/sample.h"

#include <algorithm>

#include "base/error.h"

namespace moebius::train {

void stream_text(const nn::Decoder& decoder, const data::Tokenizer& tokenizer, const SampleOptions& options,
                 const std::function<bool(std::string_view text)>& on_text) {
  std::vector<int64_t> prompt;
  for (const int32_t id : tokenizer.encode(options.prompt)) prompt.push_back(id);
  if (prompt.empty() && tokenizer.bos_id() >= 0) prompt.push_back(tokenizer.bos_id());
  if (prompt.empty())
    throw_user_error("the prompt is empty, and the tokenizer '", tokenizer.name(),
                     "' has no token for the beginning of a text; give at least one character");
  data::StreamDecoder text(tokenizer, /*continues=*/!options.prompt.empty());
  bool wanted = true;
  nn::generate(decoder, prompt, options.generate, [&](int64_t token) {
    const auto id = static_cast<int32_t>(token);
    if (id == tokenizer.eos_id() || std::ranges::find(options.end_ids, token) != options.end_ids.end())
      return false;
    const std::string piece = text.push(id);
    if (!piece.empty()) wanted = on_text(piece);
    return wanted;
  });
  const std::string rest = text.finish();
  if (wanted && !rest.empty()) on_text(rest);
}

std::string sample_text(const nn::Decoder& decoder, const data::Tokenizer& tokenizer,
                        const SampleOptions& options) {
  std::string result = options.prompt;
  stream_text(decoder, tokenizer, options, [&](std::string_view piece) {
    result += piece;
    return true;
  });
  return result;
}

std::vector<std::string> continue_lines(const nn::Decoder& decoder, const data::Tokenizer& tokenizer,
                                        std::string_view lines, nn::BatchGenerateOptions options) {
  if (tokenizer.eos_id() >= 0) options.end_ids.push_back(tokenizer.eos_id());
  std::vector<std::vector<int64_t>> prompts;
  for (size_t begin = 0; begin < lines.size();) {
    const size_t end = std::min(lines.find('\n', begin), lines.size());
    std::string_view line = lines.substr(begin, end - begin);
    if (line.ends_with('\r')) line.remove_suffix(1);
    std::vector<int64_t> prompt;
    for (const int32_t id : tokenizer.encode(line)) prompt.push_back(id);
    if (prompt.empty() && tokenizer.bos_id() >= 0) prompt.push_back(tokenizer.bos_id());
    if (prompt.empty())
      throw_user_error("line ", prompts.size() + 1, " of the prompts is empty, and the tokenizer '",
                       tokenizer.name(), "' has no token for the beginning of a text; remove the line");
    prompts.push_back(std::move(prompt));
    begin = end + 1;
  }
  std::vector<std::string> texts;
  for (const std::vector<int64_t>& tokens : nn::continue_all(decoder, prompts, options)) {
    data::StreamDecoder decoded(tokenizer, /*continues=*/true);
    std::string text;
    for (const int64_t token : tokens) text += decoded.push(static_cast<int32_t>(token));
    text += decoded.finish();
    std::ranges::replace(text, '\n', ' ');
    std::ranges::replace(text, '\r', ' ');
    texts.push_back(std::move(text));
  }
  return texts;
}

}  // namespace moebius::train
