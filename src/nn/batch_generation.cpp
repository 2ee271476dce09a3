// Shapes: T tokens of all sequences of a pass, S sequences, V vocabulary, C candidates of a sequence.
#include "nn/batch_generation.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/topk.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "base/check.h"

namespace moebius::nn {
namespace {

// A sequence that goes on.
struct Hypothesis {
  size_t prompt = 0;
  std::vector<int64_t> tokens;  // with the prompt's
  double score = 0;             // log probability of the continuation
};

struct Candidate {
  const Hypothesis* from;
  int64_t token;
  double score;
};

struct Finished {
  std::vector<int64_t> tokens;  // of the continuation
  double score = -INFINITY;     // by length
};

at::Tensor on_device(std::vector<int32_t>& values, at::Device device) {
  const at::Tensor host =
      at::empty({static_cast<int64_t>(values.size())}, at::TensorOptions().dtype(at::kInt));
  std::copy(values.begin(), values.end(), host.mutable_data_ptr<int32_t>());
  return host.to(device);
}

// (S, V) logits after the last token of each.
at::Tensor last_logits(const Decoder& decoder, const std::vector<const Hypothesis*>& sequences) {
  const at::Device device = decoder.device();
  TokenBatch batch;
  std::vector<int32_t> tokens, positions, last;
  batch.documents.cu_seqlens = {0};
  for (const Hypothesis* sequence : sequences) {
    const auto length = static_cast<int32_t>(sequence->tokens.size());
    for (int32_t i = 0; i < length; ++i) {
      tokens.push_back(static_cast<int32_t>(sequence->tokens[static_cast<size_t>(i)]));
      positions.push_back(i);
    }
    last.push_back(static_cast<int32_t>(tokens.size()) - 1);
    batch.documents.cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
    batch.documents.max_length = std::max<int64_t>(batch.documents.max_length, length);
  }
  batch.max_position = batch.documents.max_length;
  batch.tokens_T = on_device(tokens, device).to(at::kLong);
  batch.positions_T = on_device(positions, device);
  batch.documents.cu_seqlens_device = on_device(batch.documents.cu_seqlens, device);
  ForwardOptions options;
  options.may_drop = false;
  const at::Tensor hidden_TD =
      decoder.of_all_tokens(decoder.forward(batch, options).hidden_TD, batch.tokens_T.size(0));
  return decoder.logits(hidden_TD.index_select(0, on_device(last, device)));
}

// body(sequences) for groups of them that hold about pass_tokens tokens.
template <class Body>
void for_passes(const std::vector<Hypothesis>& live, int64_t pass_tokens, const Body& body) {
  std::vector<const Hypothesis*> group;
  int64_t held = 0;
  for (const Hypothesis& hypothesis : live) {
    const auto length = static_cast<int64_t>(hypothesis.tokens.size());
    if (!group.empty() && held + length > pass_tokens) {
      body(group);
      group.clear();
      held = 0;
    }
    group.push_back(&hypothesis);
    held += length;
  }
  if (!group.empty()) body(group);
}

bool is_end(int64_t token, const BatchGenerateOptions& options) {
  return std::ranges::find(options.end_ids, token) != options.end_ids.end();
}

std::vector<int64_t> continuation(const std::vector<int64_t>& tokens, const std::vector<int64_t>& prompt) {
  return {tokens.begin() + static_cast<int64_t>(prompt.size()), tokens.end()};
}

// The likeliest next token of each.
std::vector<int64_t> likeliest_tokens(const Decoder& decoder, const std::vector<Hypothesis>& live,
                                      int64_t pass_tokens) {
  std::vector<int64_t> tokens;
  for_passes(live, pass_tokens, [&](const std::vector<const Hypothesis*>& group) {
    const at::Tensor chosen_S = last_logits(decoder, group).argmax(1).cpu();
    const auto* const ids = chosen_S.const_data_ptr<int64_t>();
    tokens.insert(tokens.end(), ids, ids + chosen_S.numel());
  });
  return tokens;
}

// The likeliest continuations by one token, sequence after sequence, best first.
std::vector<Candidate> candidates_of(const Decoder& decoder, const std::vector<Hypothesis>& live,
                                     const BatchGenerateOptions& options) {
  std::vector<Candidate> result;
  for_passes(live, options.pass_tokens, [&](const std::vector<const Hypothesis*>& group) {
    const at::Tensor log_p_SV = at::log_softmax(last_logits(decoder, group), 1);
    // Twice the beam: as many may end and leave it full (each sequence has one end token, or few).
    const int64_t count = std::min(2 * options.beams, log_p_SV.size(1));
    const auto [best_SC, ids_SC] = log_p_SV.topk(count, 1);
    const at::Tensor scores_SC = best_SC.cpu(), tokens_SC = ids_SC.cpu();
    const auto* const scores = scores_SC.const_data_ptr<float>();
    const auto* const tokens = tokens_SC.const_data_ptr<int64_t>();
    for (size_t s = 0; s < group.size(); ++s)
      for (size_t c = 0; c < static_cast<size_t>(count); ++c) {
        const size_t at = s * static_cast<size_t>(count) + c;
        result.push_back({group[s], tokens[at], group[s]->score + scores[at]});
      }
  });
  return result;
}

// What a beam of one prompt has come to.
struct Beam {
  std::vector<Finished> finished;  // best first, at most `beams`

  void add(Finished hypothesis, size_t most) {
    const auto place =
        std::ranges::upper_bound(finished, hypothesis.score, std::greater<>(), &Finished::score);
    finished.insert(place, std::move(hypothesis));
    if (finished.size() > most) finished.pop_back();
  }
};

double by_length(double score, size_t length, double exponent) {
  return score / std::pow(static_cast<double>(std::max<size_t>(length, 1)), exponent);
}

// The next generation of one prompt's sequences; none when the beam is full of better ones.
std::vector<Hypothesis> grow(std::span<Candidate> candidates, const std::vector<int64_t>& prompt,
                             const BatchGenerateOptions& options, Beam& beam) {
  std::ranges::stable_sort(candidates, std::greater<>(), &Candidate::score);
  const auto beams = static_cast<size_t>(options.beams);
  std::vector<Hypothesis> next;
  for (size_t rank = 0; rank < candidates.size() && next.size() < beams; ++rank) {
    const Candidate& candidate = candidates[rank];
    const std::vector<int64_t>& tokens = candidate.from->tokens;
    if (is_end(candidate.token, options)) {
      if (rank < beams)
        beam.add({continuation(tokens, prompt),
                  by_length(candidate.score, tokens.size() - prompt.size() + 1, options.length_exponent)},
                 beams);
      continue;
    }
    next.push_back({candidate.from->prompt, tokens, candidate.score});
    next.back().tokens.push_back(candidate.token);
  }
  if (beam.finished.size() == beams && !next.empty() &&
      beam.finished.back().score >=
          by_length(next.front().score, next.front().tokens.size() - prompt.size(), options.length_exponent))
    next.clear();
  return next;
}

std::vector<std::vector<int64_t>> search_greedily(const Decoder& decoder,
                                                  const std::vector<std::vector<int64_t>>& prompts,
                                                  std::vector<Hypothesis> live,
                                                  const BatchGenerateOptions& options) {
  std::vector<std::vector<int64_t>> result(prompts.size());
  for (int64_t i = 0; i < options.max_tokens && !live.empty(); ++i) {
    const std::vector<int64_t> tokens = likeliest_tokens(decoder, live, options.pass_tokens);
    std::vector<Hypothesis> next;
    for (size_t s = 0; s < live.size(); ++s) {
      if (is_end(tokens[s], options)) continue;
      result[live[s].prompt].push_back(tokens[s]);
      live[s].tokens.push_back(tokens[s]);
      next.push_back(std::move(live[s]));
    }
    live = std::move(next);
  }
  return result;
}

std::vector<std::vector<int64_t>> search_with_beam(const Decoder& decoder,
                                                   const std::vector<std::vector<int64_t>>& prompts,
                                                   std::vector<Hypothesis> live,
                                                   const BatchGenerateOptions& options) {
  std::vector<Beam> beams(prompts.size());
  for (int64_t i = 0; i < options.max_tokens && !live.empty(); ++i) {
    std::vector<Candidate> candidates = candidates_of(decoder, live, options);
    std::vector<Hypothesis> next;
    for (size_t begin = 0, end = 0; begin < candidates.size(); begin = end) {
      const size_t prompt = candidates[begin].from->prompt;
      while (end < candidates.size() && candidates[end].from->prompt == prompt) ++end;
      for (Hypothesis& hypothesis :
           grow(std::span(candidates).subspan(begin, end - begin), prompts[prompt], options, beams[prompt]))
        next.push_back(std::move(hypothesis));
    }
    live = std::move(next);
  }
  // Those that never ended compete too.
  for (const Hypothesis& hypothesis : live)
    beams[hypothesis.prompt].add(
        {continuation(hypothesis.tokens, prompts[hypothesis.prompt]),
         by_length(hypothesis.score, hypothesis.tokens.size() - prompts[hypothesis.prompt].size(),
                   options.length_exponent)},
        static_cast<size_t>(options.beams));
  std::vector<std::vector<int64_t>> result;
  for (Beam& beam : beams)
    result.push_back(beam.finished.empty() ? std::vector<int64_t>() : std::move(beam.finished[0].tokens));
  return result;
}

}  // namespace

std::vector<std::vector<int64_t>> continue_all(const Decoder& decoder,
                                               const std::vector<std::vector<int64_t>>& prompts,
                                               const BatchGenerateOptions& options) {
  MOEBIUS_CHECK_GE(options.beams, 1);
  const at::NoGradGuard no_grad;
  std::vector<Hypothesis> live;
  for (size_t i = 0; i < prompts.size(); ++i) {
    MOEBIUS_CHECK(!prompts[i].empty(), "prompt ", i, " is empty");
    live.push_back({i, prompts[i], 0});
  }
  return options.beams == 1 ? search_greedily(decoder, prompts, std::move(live), options)
                            : search_with_beam(decoder, prompts, std::move(live), options);
}

}  // namespace moebius::nn
