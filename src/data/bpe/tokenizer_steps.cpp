// Normalizers, pre-tokenizers, decoders and post-processors of a tokenizer.json.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "data/bpe/json_fields.h"
#include "data/bpe/split_patterns.h"
#include "data/bpe/tokenizer_file.h"

namespace moebius::data {
namespace {

constexpr int kMaxDepth = 20;

// Calls `each` with every component that is not a Sequence, in order.
template <class Each>
void for_each_step(const JsonField& field, const char* list, int depth, const Each& each) {
  if (field.is_null()) return;
  if (depth > kMaxDepth) field.fail("sequences are nested too deep");
  const std::string type = field.at("type").string();
  if (type != "Sequence") return each(field, type);
  const JsonField parts = field.at(list);
  for (size_t i = 0; i < parts.array_size(); ++i) for_each_step(parts.at(i), list, depth + 1, each);
}

[[noreturn]] void not_supported(const JsonField& field, const std::string& known) {
  field.at("type").fail("which is not supported; supported are " + known);
}

// {"String": "x"} or {"Regex": "x"}, in older files "x".
struct Pattern {
  std::string text;
  bool is_regex = false;
};
Pattern read_pattern(const JsonField& field) {
  if (field.value().is_string()) return {field.string(), false};
  const JsonField regex = field.find("Regex");
  if (!regex.is_null()) return {regex.string(), true};
  return {field.at("String").string(), false};
}

PreTokenizerStep::Behavior read_behavior(const JsonField& field) {
  using Behavior = PreTokenizerStep::Behavior;
  const std::string name = field.string();
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  field.fail("expected Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

PreTokenizerStep read_split(const JsonField& field) {
  PreTokenizerStep step;
  const Pattern pattern = read_pattern(field.at("pattern"));
  step.behavior = read_behavior(field.at("behavior"));
  step.invert = field.boolean_or("invert", false);
  if (pattern.is_regex) {
    step.regex = std::make_shared<const Regex>(pattern.text, field.where() + ".pattern");
  } else {
    step.kind = PreTokenizerStep::Kind::kSplitText;
    step.text = pattern.text;
  }
  return step;
}

PreTokenizerStep read_metaspace(const JsonField& field) {
  using Prepend = PreTokenizerStep::Prepend;
  PreTokenizerStep step;
  step.kind = PreTokenizerStep::Kind::kMetaspace;
  step.text = field.at("replacement").string();
  if (step.text.empty()) field.at("replacement").fail("expected a character");
  const JsonField scheme = field.find("prepend_scheme");
  const std::string name =
      scheme.is_null() ? (field.boolean_or("add_prefix_space", true) ? "always" : "never") : scheme.string();
  if (name == "never") {
    step.prepend = Prepend::kNever;
  } else if (name == "first") {
    step.prepend = Prepend::kFirst;
  } else if (name != "always") {
    scheme.fail("expected always, first or never");
  }
  step.split = field.boolean_or("split", true);
  return step;
}

// The ids of a special token of a template.
void append_special(const JsonField& piece, const JsonField& processor, std::vector<int32_t>& ids,
                    const TokenizerFile& file) {
  const JsonField name = piece.at("id");
  const JsonField entry = processor.at("special_tokens").at(name.string()).at("ids");
  for (size_t i = 0; i < entry.array_size(); ++i)
    ids.push_back(static_cast<int32_t>(entry.at(i).integer(0, file.vocab_size() - 1)));
}

}  // namespace

Normalizer read_normalizer(const JsonField& field) {
  std::vector<NormalizerStep> steps;
  for_each_step(field, "normalizers", 0, [&](const JsonField& part, const std::string& type) {
    NormalizerStep step;
    if (type == "NFC") {
      step.kind = NormalizerStep::Kind::kFormC;
    } else if (type == "Prepend") {
      step.kind = NormalizerStep::Kind::kPrepend;
      step.content = part.at("prepend").string();
    } else if (type == "Replace") {
      const Pattern pattern = read_pattern(part.at("pattern"));
      step.kind = pattern.is_regex ? NormalizerStep::Kind::kReplaceRegex : NormalizerStep::Kind::kReplace;
      step.content = part.at("content").string();
      step.pattern = pattern.text;
      if (pattern.is_regex)
        step.regex = std::make_shared<const Regex>(pattern.text, part.where() + ".pattern");
    } else {
      not_supported(part, "NFC, Prepend, Replace and Sequence");
    }
    steps.push_back(std::move(step));
  });
  return Normalizer(std::move(steps));
}

PreTokenizer read_pre_tokenizer(const JsonField& field, bool& byte_level) {
  std::vector<PreTokenizerStep> steps;
  byte_level = false;
  for_each_step(field, "pretokenizers", 0, [&](const JsonField& part, const std::string& type) {
    if (byte_level) part.fail("but nothing can come after ByteLevel");
    PreTokenizerStep step;
    if (type == "Split") {
      steps.push_back(read_split(part));
    } else if (type == "Digits") {
      step.kind = PreTokenizerStep::Kind::kDigits;
      step.behavior = part.boolean_or("individual_digits", false) ? PreTokenizerStep::Behavior::kIsolated
                                                                  : PreTokenizerStep::Behavior::kContiguous;
      steps.push_back(std::move(step));
    } else if (type == "Metaspace") {
      steps.push_back(read_metaspace(part));
    } else if (type == "ByteLevel") {
      byte_level = true;
      if (part.boolean_or("add_prefix_space", true)) {
        step.kind = PreTokenizerStep::Kind::kBytePrefix;
        steps.push_back(step);
      }
      if (part.boolean_or("use_regex", true)) {
        PreTokenizerStep split;
        split.regex = std::make_shared<const Regex>(kGpt2Pattern, part.where());
        steps.push_back(std::move(split));
      }
    } else {
      not_supported(part, "Split, Digits, Metaspace, ByteLevel and Sequence");
    }
  });
  return PreTokenizer(std::move(steps));
}

DecoderSteps read_decoder(const JsonField& field) {
  DecoderSteps steps;
  for_each_step(field, "decoders", 0, [&](const JsonField& part, const std::string& type) {
    if (type == "ByteLevel") {
      steps.byte_level = true;
    } else if (type == "ByteFallback") {
      steps.byte_fallback = true;
    } else if (type == "Fuse") {
    } else if (type == "Replace") {
      const Pattern pattern = read_pattern(part.at("pattern"));
      if (pattern.is_regex) part.at("pattern").fail("but a decoder can replace only a String");
      steps.replacements.emplace_back(pattern.text, part.at("content").string());
    } else if (type == "Strip") {
      const std::string content = part.at("content").string();
      const int64_t start = part.at("start").integer(0, 1), stop = part.at("stop").integer(0, 1);
      if (content != " " || stop != 0) part.fail("but only one space at the begin can be stripped");
      steps.strips_space = start == 1;
    } else if (type == "Metaspace") {
      const PreTokenizerStep metaspace = read_metaspace(part);
      steps.replacements.emplace_back(metaspace.text, " ");
      steps.strips_space = metaspace.prepend != PreTokenizerStep::Prepend::kNever;
    } else {
      not_supported(part, "ByteLevel, ByteFallback, Fuse, Replace, Strip, Metaspace and Sequence");
    }
  });
  return steps;
}

void read_post_processor(const JsonField& field, TokenizerFile& file) {
  for_each_step(field, "processors", 0, [&](const JsonField& part, const std::string& type) {
    if (type == "ByteLevel") return;  // concerns offsets only
    if (type == "BertProcessing" || type == "RobertaProcessing") {
      for (const char* name : {"cls", "sep"}) {
        const JsonField token = part.at(name);
        if (token.array_size() != 2) token.fail("expected a token and its id");
        auto& ids = name == std::string("cls") ? file.prefix : file.suffix;
        ids.push_back(static_cast<int32_t>(token.at(size_t{1}).integer(0, file.vocab_size() - 1)));
      }
      return;
    }
    if (type != "TemplateProcessing")
      not_supported(part, "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel and Sequence");
    const JsonField single = part.at("single");
    bool before = true;
    for (size_t i = 0; i < single.array_size(); ++i) {
      const JsonField piece = single.at(i);
      if (!piece.find("Sequence").is_null()) {
        if (!before) piece.fail("but the text can stand in a template only once");
        before = false;
      } else {
        append_special(piece.at("SpecialToken"), part, before ? file.prefix : file.suffix, file);
      }
    }
    if (before && single.array_size() > 0) single.fail("which has no place for the text");
  });
}

}  // namespace moebius::data
