// Text that a model writes.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer.h"
#include "nn/batch_generation.h"
#include "nn/generation.h"

namespace moebius::train {

struct SampleOptions {
  std::string prompt;
  std::vector<int64_t> end_ids;  // that end a text, beside the tokenizer's end of text
  nn::GenerateOptions generate;
};

// Continues the prompt; `on_text` gets each piece of new text as soon as it is certain, always whole
// characters. Generation ends early at the tokenizer's end of text or one of end_ids, or when on_text returns
// false. UserError when the prompt has no token.
void stream_text(const nn::Decoder& decoder, const data::Tokenizer& tokenizer, const SampleOptions& options,
                 const std::function<bool(std::string_view text)>& on_text);

// Prompt and continuation.
std::string sample_text(const nn::Decoder& decoder, const data::Tokenizer& tokenizer,
                        const SampleOptions& options);

// The continuation of each line of `lines` by its likeliest tokens, until the tokenizer's end of text or one
// of options.end_ids; line feeds in it become spaces. UserError naming the first line without a token.
std::vector<std::string> continue_lines(const nn::Decoder& decoder, const data::Tokenizer& tokenizer,
                                        std::string_view lines, nn::BatchGenerateOptions options);

}  // namespace moebius::train
