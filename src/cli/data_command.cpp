#include "cli/data_command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/units.h"
#include "cli/data_build_command.h"
#include "cli/data_encode_command.h"
#include "cli/data_plan_command.h"
#include "cli/number_checks.h"
#include "data/corpus.h"
#include "data/tokenizer.h"

namespace moebius::cli {
namespace {

using data::Corpus;

std::vector<std::filesystem::path> to_paths(const std::vector<std::string>& names) {
  return {names.begin(), names.end()};
}

struct DocumentLengths {
  int64_t shortest = 0, longest = 0;
  double mean = 0;
};

DocumentLengths document_lengths(const Corpus& corpus) {
  DocumentLengths lengths{corpus.num_tokens(), 0, 0};
  for (int64_t i = 0; i < corpus.num_documents(); ++i) {
    const int64_t size = corpus.document(i).size();
    lengths.shortest = std::min(lengths.shortest, size);
    lengths.longest = std::max(lengths.longest, size);
  }
  lengths.mean = static_cast<double>(corpus.num_tokens()) / static_cast<double>(corpus.num_documents());
  return lengths;
}

struct InspectArguments {
  std::string corpus, tokenizer;
  bool verify = false, json = false;
  int64_t document = -1;
};

void print_json(const Corpus& corpus, bool verified) {
  const DocumentLengths lengths = document_lengths(corpus);
  nlohmann::ordered_json json;
  if (corpus.info()) json = nlohmann::ordered_json::parse(data::to_json(*corpus.info()));
  json["num_tokens"] = corpus.num_tokens();
  json["num_documents"] = corpus.num_documents();
  json["token_type"] = data::name_of(corpus.type());
  json["shortest_document"] = lengths.shortest;
  json["longest_document"] = lengths.longest;
  json["mean_document"] = lengths.mean;
  json["verified"] = verified;
  std::cout << json.dump(2) << "\n";
}

void print_text(const Corpus& corpus, bool verified) {
  const DocumentLengths lengths = document_lengths(corpus);
  std::cout << "corpus      " << corpus.prefix().string() << "\n"
            << "tokens      " << corpus.num_tokens() << " as " << data::name_of(corpus.type()) << ", "
            << format_bytes(corpus.num_tokens() * data::size_of(corpus.type())) << "\n"
            << "documents   " << corpus.num_documents() << ", of " << lengths.shortest << " to "
            << lengths.longest << " tokens, mean " << format_count(lengths.mean) << "\n";
  if (!corpus.info()) {
    std::cout << "sidecar     none: made by another program, tokenizer and text unknown\n";
    return;
  }
  const data::CorpusInfo& info = *corpus.info();
  std::cout << "tokenizer   " << info.tokenizer << " (" << info.tokenizer_fingerprint << "), vocabulary "
            << info.vocab_size << "\n"
            << "text        " << format_bytes(info.text_bytes) << ", "
            << static_cast<double>(info.text_bytes) / static_cast<double>(info.num_tokens)
            << " bytes per token, one document per " << info.split << "\n";
  for (const data::SourceFile& source : info.sources) {
    std::cout << "source      " << source.path << ", " << format_bytes(source.bytes) << "\n";
  }
  std::cout << "checksums   " << (verified ? "verified" : "not read (--verify does)") << "\n";
}

// The text of document i where the tokenizer is known, else its ids.
void print_document(const Corpus& corpus, int64_t i, const std::string& tokenizer_spec) {
  if (i >= corpus.num_documents()) {
    throw_user_error("--document is ", i, ", but the corpus has the documents 0 to ",
                     corpus.num_documents() - 1);
  }
  std::shared_ptr<const data::Tokenizer> tokenizer;
  if (!tokenizer_spec.empty()) {
    tokenizer = data::open_tokenizer(tokenizer_spec);
    if (corpus.info() && corpus.info()->tokenizer_fingerprint != tokenizer->fingerprint()) {
      throw_user_error("--tokenizer ", tokenizer_spec, " is ", tokenizer->fingerprint(),
                       ", but the corpus was built with ", corpus.info()->tokenizer_fingerprint, " (",
                       corpus.info()->tokenizer, ")");
    }
  } else if (corpus.info() &&
             corpus.info()->tokenizer_fingerprint == data::make_bytes_tokenizer()->fingerprint()) {
    tokenizer = data::make_bytes_tokenizer();
  }
  std::vector<int32_t> ids;
  corpus.read(corpus.document(i), tokenizer ? tokenizer->vocab_size() : int64_t{1} << 31, ids);
  if (tokenizer) {
    std::cout << tokenizer->decode(ids);
    return;
  }
  for (size_t t = 0; t < ids.size(); ++t) std::cout << (t ? " " : "") << ids[t];
  std::cout << "\n";
}

void run_inspect(const InspectArguments& arguments) {
  const auto corpus = Corpus::open(arguments.corpus);
  if (arguments.verify) corpus->verify();
  if (arguments.document >= 0) {
    print_document(*corpus, arguments.document, arguments.tokenizer);
  } else if (arguments.json) {
    print_json(*corpus, arguments.verify);
  } else {
    print_text(*corpus, arguments.verify);
  }
}

struct TokenizerArguments {
  std::vector<std::string> files;
  std::string type = "bpe", out;
  int64_t vocab = 4096;
  bool overwrite = false;
};

void run_tokenizer(const TokenizerArguments& arguments) {
  data::TokenizerTraining training;
  training.files = to_paths(arguments.files);
  training.vocab = arguments.vocab;
  training.type = arguments.type;
  training.out = arguments.out;
  training.overwrite = arguments.overwrite;
  data::train_sentencepiece(training);
  const auto tokenizer = data::load_sentencepiece(training.out);
  std::cout << arguments.out << ": " << tokenizer->vocab_size() << " pieces, " << tokenizer->fingerprint()
            << "\n";
}

void add_inspect(CLI::App& parent) {
  auto arguments = std::make_shared<InspectArguments>();
  CLI::App* command = parent.add_subcommand("inspect", "Say what a corpus holds, and check it");
  command->add_option("corpus", arguments->corpus, "Prefix, .idx or .bin")->required();
  command->add_flag("--verify", arguments->verify, "Read everything and compare checksums and ids");
  command->add_flag("--json", arguments->json, "Print JSON");
  command->add_option("--document", arguments->document, "Print the text of this document (from 0) instead")
      ->check(zero_or_more());
  command->add_option("--tokenizer", arguments->tokenizer,
                      "Tokenizer for --document, where it is not 'bytes'");
  command->callback([arguments] { run_inspect(*arguments); });
}

void add_tokenizer(CLI::App& parent) {
  auto arguments = std::make_shared<TokenizerArguments>();
  CLI::App* command = parent.add_subcommand("tokenizer", "Train a SentencePiece tokenizer");
  command->add_option("--train", arguments->files, "Text files (UTF-8)")->required();
  command->add_option("--vocab", arguments->vocab, "Number of pieces")
      ->capture_default_str()
      ->check(above_zero());
  command->add_option("--type", arguments->type, "bpe or unigram")
      ->capture_default_str()
      ->check(CLI::IsMember({"bpe", "unigram"}));
  command->add_option("--out", arguments->out, "The .model file to write")->required();
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file when it exists");
  command->callback([arguments] { run_tokenizer(*arguments); });
}

}  // namespace

void add_data_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("data", "Build, inspect and plan corpora, train and try tokenizers");
  command->require_subcommand(1);
  add_data_build_command(*command);
  add_inspect(*command);
  add_tokenizer(*command);
  add_data_encode_command(*command);
  add_data_plan_commands(*command);
}

}  // namespace moebius::cli
