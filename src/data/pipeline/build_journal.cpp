#include "data/pipeline/build_journal.h"

#include <nlohmann/json.hpp>

#include "base/file.h"

namespace moebius::data {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kJournalFormat = "moebius-build";
constexpr int kJournalVersion = 1;

fs::path journal_path(const fs::path& folder) {
  return folder / "journal.json";
}

}  // namespace

std::array<std::pair<const char*, int64_t*>, BuildCounters::kNumFields> BuildCounters::fields() {
  return {{{"files", &files},
           {"input_bytes", &input_bytes},
           {"bytes", &bytes},
           {"records", &records},
           {"bad_records", &bad_records},
           {"bad_files", &bad_files},
           {"empty", &empty},
           {"too_short", &too_short},
           {"too_long", &too_long},
           {"unprintable", &unprintable},
           {"exact_duplicates", &exact_duplicates},
           {"near_duplicates", &near_duplicates},
           {"documents", &documents},
           {"text_bytes", &text_bytes},
           {"tokens", &tokens}}};
}

void write_journal(const BuildJournal& journal, const fs::path& folder) {
  BuildJournal copy = journal;
  Json counters;
  for (const auto& [name, value] : copy.counters.fields()) counters[name] = *value;
  const Json json = {{"format", kJournalFormat},
                     {"version", kJournalVersion},
                     {"recipe", journal.recipe},
                     {"file", journal.position.file},
                     {"byte", journal.position.byte},
                     {"line", journal.position.line},
                     {"token_bytes", journal.corpus.token_bytes},
                     {"border_bytes", journal.corpus.border_bytes},
                     {"fingerprint_bytes", journal.fingerprint_bytes},
                     {"counters", counters},
                     {"checksums", journal.checksums},
                     {"problems", journal.problems}};
  // Messages quote what need not be UTF-8.
  write_file_atomic(journal_path(folder), json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n");
}

std::optional<BuildJournal> read_journal(const fs::path& folder, const std::string& recipe) {
  if (!fs::exists(journal_path(folder))) return std::nullopt;
  const Json json = Json::parse(read_file(journal_path(folder)), nullptr, /*allow_exceptions=*/false);
  try {
    if (json.at("format") != kJournalFormat || json.at("version") != kJournalVersion ||
        json.at("recipe") != recipe) {
      return std::nullopt;
    }
    BuildJournal journal;
    journal.recipe = recipe;
    journal.position = {json.at("file"), json.at("byte"), json.at("line")};
    journal.corpus = {json.at("token_bytes"), json.at("border_bytes")};
    journal.fingerprint_bytes = json.at("fingerprint_bytes");
    for (const auto& [name, value] : journal.counters.fields()) *value = json.at("counters").at(name);
    journal.checksums = json.at("checksums").get<std::vector<std::string>>();
    journal.problems = json.at("problems").get<std::vector<std::string>>();
    return journal;
  } catch (const Json::exception&) {
    return std::nullopt;
  }
}

}  // namespace moebius::data
