#include "data/corpus_builder.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/error.h"
#include "data/checksum.h"
#include "data/pipeline/build_pipeline.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;

SourceFile describe_file(const fs::path& path) {
  struct stat status = {};
  if (::stat(path.c_str(), &status) != 0) throw_user_error(path.string(), ": ", std::strerror(errno));
  return {fs::absolute(path).lexically_normal().string(), static_cast<int64_t>(status.st_size),
          status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec, ""};
}

void check_build(const CorpusBuild& build) {
  if (build.files.empty())
    throw_user_error("no text file was given to build a corpus from; name at least one");
  for (const auto& file : build.files) {
    if (!fs::exists(file)) throw_user_error(file.string(), ": there is no such file; check the path");
    if (!fs::is_regular_file(file)) {
      throw_user_error(file.string(), ": this is not a file; name the text files in it one by one");
    }
  }
  if (build.decode_device == "opencl") make_opencl_decoder();  // says what is missing
  const DocumentFilter& filter = build.filter;
  if (filter.max_chars > 0 && filter.max_chars < filter.min_chars) {
    throw_user_error("no document has at least ", filter.min_chars, " and at most ", filter.max_chars,
                     " characters; raise the upper limit or lower the other");
  }
}

// How documents are chosen, where that differs from keeping all.
std::string recipe_of(const CorpusBuild& build) {
  std::string recipe;
  const auto add = [&](const auto&... parts) { recipe += concat(recipe.empty() ? "" : ", ", parts...); };
  if (build.text_field != "text") add("field ", build.text_field);
  if (build.filter.min_chars > 0) add("at least ", build.filter.min_chars, " characters");
  if (build.filter.max_chars > 0) add("at most ", build.filter.max_chars, " characters");
  if (build.filter.min_printable > 0) add("printable ", build.filter.min_printable);
  if (build.duplicates == Duplicates::exact) add("no duplicates");
  if (build.duplicates == Duplicates::near) add("no near-duplicates from ", build.near_threshold);
  return recipe;
}

// What the result is a function of.
std::string journal_recipe(const CorpusBuild& build, const std::vector<SourceFile>& sources) {
  std::string text =
      concat(build.tokenizer->fingerprint(), "\n", name_of(build.split), "\n", recipe_of(build), "\n");
  for (const SourceFile& source : sources)
    text += concat(source.path, "\n", source.bytes, " ", source.modified_ns, "\n");
  return hash_hex(hash64(text));
}

CorpusInfo info_of(const CorpusBuild& build, BuildJournal& journal, std::vector<SourceFile> sources) {
  CorpusInfo info;
  info.tokenizer = build.tokenizer->name();
  info.tokenizer_fingerprint = build.tokenizer->fingerprint();
  info.vocab_size = build.tokenizer->vocab_size();
  info.split = name_of(build.split);
  info.text_bytes = journal.counters.text_bytes;
  info.sources = std::move(sources);
  for (size_t i = 0; i < info.sources.size(); ++i) info.sources[i].checksum = journal.checksums[i];
  info.recipe = recipe_of(build);
  for (const auto& [name, value] : journal.counters.fields()) info.counters.emplace_back(name, *value);
  return info;
}

[[noreturn]] void refuse_empty(const BuildCounters& counters) {
  throw_user_error("no document is left of ", counters.records, ": ", counters.bad_records,
                   " could not be read, ", counters.empty, " were empty, ",
                   counters.too_short + counters.too_long + counters.unprintable,
                   " were dropped by the filter; give other text or a wider filter");
}

}  // namespace

BuildReport build_corpus(const CorpusBuild& build) {
  check_build(build);
  remove_stale_temporaries(fs::absolute(build.prefix).parent_path());
  const double begin = steady_seconds();
  const fs::path folder = work_folder(build.prefix);
  const FolderLock lock(folder);  // one builder at a time
  std::vector<SourceFile> sources;
  for (const auto& file : build.files) sources.push_back(describe_file(file));

  BuildReport report;
  BuildJournal journal;
  journal.recipe = journal_recipe(build, sources);
  if (const auto left = read_journal(folder, journal.recipe)) {
    const bool met_errors = left->counters.bad_records + left->counters.bad_files > 0;
    if (build.skips_errors || !met_errors) journal = *left;
  }
  report.resumed_bytes = journal.counters.bytes;
  CorpusWriter writer(build.prefix, token_type_for(build.tokenizer->vocab_size()), journal.corpus);
  if (build.keeps_partial && journal.counters.bytes > 0) writer.keep();
  run_pipeline(build, writer, journal, report);
  if (journal.counters.documents == 0) refuse_empty(journal.counters);
  writer.finish(info_of(build, journal, std::move(sources)));
  report.counters = journal.counters;
  report.problems = journal.problems;
  report.seconds = steady_seconds() - begin;
  return report;
}

bool corpus_is_current(const CorpusBuild& build) {
  check_build(build);
  std::shared_ptr<const Corpus> corpus;
  try {
    if (!fs::exists(info_path(build.prefix))) return false;
    corpus = Corpus::open(build.prefix);
  } catch (const UserError&) {
    return false;  // damaged or of another version: made again
  }
  const CorpusInfo& info = *corpus->info();
  if (info.tokenizer_fingerprint != build.tokenizer->fingerprint() || info.split != name_of(build.split) ||
      info.recipe != recipe_of(build) || info.sources.size() != build.files.size()) {
    return false;
  }
  for (const auto& [name, value] : info.counters)
    if ((name == "bad_records" || name == "bad_files") && value > 0 && !build.skips_errors) return false;
  for (size_t i = 0; i < build.files.size(); ++i) {
    const SourceFile now = describe_file(build.files[i]);
    const SourceFile& then = info.sources[i];
    if (now.path != then.path || now.bytes != then.bytes) return false;
    if (now.modified_ns != then.modified_ns) {
      const MappedFile file(build.files[i]);
      if (checksum_of(file.text()) != then.checksum) return false;
    }
  }
  return true;
}

}  // namespace moebius::data
