// Text files to a corpus on disk.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/corpus_writer.h"
#include "data/pipeline/build_journal.h"
#include "data/pipeline/input_reader.h"
#include "data/pipeline/parse.h"
#include "data/tokenizer.h"

namespace moebius::data {

struct CorpusBuild {
  // Text (UTF-8), JSON lines and Parquet by name (kind_of); the first two plain or compressed with gzip or
  // zstd.
  std::vector<std::filesystem::path> files;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::filesystem::path prefix;
  DocumentSplit split = DocumentSplit::file;
  // Of JSON lines: a name, or a JSON pointer ("/data/text"); of Parquet files: the column.
  std::string text_field = "text";
  DocumentFilter filter;
  Duplicates duplicates = Duplicates::keep;  // near: those that are the same, too; the first one stays
  double near_threshold = 0.8;               // see pipeline/near_duplicates.h
  // What reads JSON lines: "cpu" (simdjson), or "opencl", the kernel of decode/json_lines.cl on the first
  // OpenCL device, which gives the same.
  std::string decode_device = "cpu";
  // What cannot be read (damaged compression, JSON or UTF-8) is left out and counted instead of ending the
  // build. A file that is damaged in the middle is read up to there.
  bool skips_errors = false;
  // A build that fails or is interrupted leaves its work folder, and the next one with the same input and
  // settings goes on from there.
  bool keeps_partial = false;
  // Threads that parse and tokenize; 0: all.
  int num_threads = 0;
  // Bytes of text between reading and writing; a single larger document passes.
  int64_t in_flight_bytes = int64_t{64} << 20;
  // Bytes of tokens between two points from which a build can go on.
  int64_t commit_bytes = int64_t{64} << 20;
  // Called now and then with bytes of the input files done and to do; may be empty.
  std::function<void(int64_t done_bytes, int64_t total_bytes)> progress;
  // Asked by another thread: when true, what was read is written and BuildInterrupted thrown. May be empty.
  std::function<bool()> is_interrupted;
};

struct BuildReport {
  BuildCounters counters;
  std::vector<std::string> problems;  // the first 20, as FILE:LINE: what
  int64_t resumed_bytes = 0;          // of text that an earlier build had done
  double seconds = 0;
  // Time that threads were busy in each stage.
  double read_seconds = 0, parse_seconds = 0, deduplicate_seconds = 0, tokenize_seconds = 0,
         write_seconds = 0;
};

// A build that is_interrupted ended.
class BuildInterrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "the build was interrupted"; }
};

// Builds the corpus; an existing one under this prefix is replaced. Files, parsing, duplicates, tokenizing
// and writing are stages of a pipeline over `num_threads` threads and a few more that mostly wait; the result
// is the same, byte for byte, whatever their number and whether the build was interrupted. Documents stand in
// the order of the files. UserError for bad input (unless skips_errors), a full disk, and when no document is
// left.
BuildReport build_corpus(const CorpusBuild& build);

// Whether a corpus stands under the prefix that this build would make again: same tokenizer, settings and
// source files. Files of the same size and time of change count as unchanged; when only the time differs, the
// content decides.
bool corpus_is_current(const CorpusBuild& build);

}  // namespace moebius::data
