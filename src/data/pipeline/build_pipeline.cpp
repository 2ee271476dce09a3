#include "data/pipeline/build_pipeline.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <filesystem>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/parallel.h"
#include "data/pipeline/queues.h"

namespace moebius::data {
namespace {

constexpr size_t kTaskBytes = 256 << 10;  // text that one thread encodes at a time
constexpr size_t kMostProblems = 20;      // that are quoted
constexpr double kCommitSeconds = 20;

// Seconds that threads spend in a stage.
class StageClock {
 public:
  template <class F>
  auto time(F&& work) {
    struct Stop {
      StageClock& clock;
      double begin = steady_seconds();
      ~Stop() { clock.nanoseconds_ += static_cast<int64_t>((steady_seconds() - begin) * 1e9); }
    } const stop{*this};
    return work();
  }
  double seconds() const { return static_cast<double>(nanoseconds_.load()) * 1e-9; }

 private:
  std::atomic<int64_t> nanoseconds_{0};
};

struct ReadTask {
  int64_t number = 0;
  InputBatch input;
};

// A document or, where the tokenizer allows, a part of one.
struct Piece {
  std::string_view text;
  bool starts_document, ends_document;
  uint64_t exact;
  int64_t signature;
};

// What a batch adds to the journal when its documents are written.
struct BatchEnd {
  InputPosition position;
  int64_t done_bytes = 0;  // of the input as it is on disk
  BuildCounters counters;
  std::string checksum;
  std::vector<std::string> problems;
};

struct EncodeTask {
  int64_t number = 0;
  std::shared_ptr<const ParsedBatch> batch;
  std::vector<Piece> pieces;
  size_t text_bytes = 0;
  std::optional<BatchEnd> end;
  std::vector<int32_t> ids;
  std::vector<size_t> piece_ends;  // in ids
};

// The documents kept so far, and the file that remembers them for a build that goes on.
class KeptDocuments {
 public:
  KeptDocuments(const CorpusBuild& build, const std::filesystem::path& file, int64_t keep_bytes)
      : duplicates_(build.duplicates), near_(build.near_threshold), log_(file, keep_bytes) {
    if (keep_bytes == 0) return;
    const MappedFile map(file);
    for (size_t at = 0; at < map.size(); at += entry_bytes()) {
      uint64_t exact;
      Signature signature;
      std::memcpy(&exact, map.text().data() + at, sizeof exact);
      if (duplicates_ == Duplicates::near)
        std::memcpy(&signature, map.text().data() + at + sizeof exact, sizeof signature);
      insert(exact, signature);
    }
  }

  // Which counter a document adds to; null: it is new, and kept.
  int64_t BuildCounters::*place(uint64_t exact, const Signature* signature) {
    if (exact_.any(exact, [](uint32_t) { return true; })) return &BuildCounters::exact_duplicates;
    if (signature != nullptr && near_.contains_like(*signature)) return &BuildCounters::near_duplicates;
    insert(exact, signature != nullptr ? *signature : Signature{});
    return nullptr;
  }

  // By the writer's thread; place() by the judge's.
  void log(uint64_t exact, const Signature* signature) {
    if (duplicates_ == Duplicates::keep) return;
    log_.write(&exact, sizeof exact);
    if (signature != nullptr) log_.write(signature, sizeof *signature);
  }
  int64_t sync() {
    log_.sync();
    return log_.num_bytes();
  }

 private:
  size_t entry_bytes() const {
    return sizeof(uint64_t) + (duplicates_ == Duplicates::near ? sizeof(Signature) : 0);
  }
  void insert(uint64_t exact, const Signature& signature) {
    exact_.insert(exact, 0);
    if (duplicates_ == Duplicates::near) near_.insert(signature);
  }

  const Duplicates duplicates_;
  KeyTable exact_;
  NearDuplicates near_;
  AppendFile log_;
};

class Pipeline {
 public:
  Pipeline(const CorpusBuild& build, CorpusWriter& writer, BuildJournal& journal)
      : build_(build),
        writer_(writer),
        journal_(journal),
        num_workers_(build.num_threads > 0 ? build.num_threads : num_threads()),
        read_credits_(build.in_flight_bytes / 2),
        task_credits_(build.in_flight_bytes / 2),
        kept_(build, work_folder(build.prefix) / "fingerprints", journal.fingerprint_bytes) {
    for (const auto& file : build.files)
      total_bytes_ += static_cast<int64_t>(std::filesystem::file_size(file));
  }

  void run() {
    std::vector<std::thread> threads;
    const auto start = [&](void (Pipeline::*stage)()) {
      threads.emplace_back([this, stage] {
        try {
          (this->*stage)();
        } catch (...) {
          fail();
        }
      });
    };
    start(&Pipeline::read);
    start(&Pipeline::judge);
    for (int i = 0; i < num_workers_; ++i) start(&Pipeline::work);
    try {
      write();
    } catch (...) {
      fail();
    }
    work_.stop();
    for (std::thread& thread : threads) thread.join();
    if (error_) std::rethrow_exception(error_);
    if (interrupted_) throw BuildInterrupted();
  }

  void report(BuildReport& report) const {
    report.read_seconds = read_clock_.seconds();
    report.parse_seconds = parse_clock_.seconds();
    report.deduplicate_seconds = judge_clock_.seconds();
    report.tokenize_seconds = encode_clock_.seconds();
    report.write_seconds = write_clock_.seconds();
  }

 private:
  void fail() {
    {
      const std::lock_guard lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
    read_credits_.stop();
    task_credits_.stop();
    parsed_.stop();
    encoded_.stop();
    work_.stop();
  }

  const std::string& name(int64_t file) const { return build_.files[static_cast<size_t>(file)].native(); }

  void read() {
    InputReader reader(build_.files, build_.split, build_.text_field, journal_.position);
    int64_t count = 0;
    while (true) {
      if (build_.is_interrupted && build_.is_interrupted()) {
        interrupted_ = true;
        break;
      }
      InputBatch batch;
      if (!read_clock_.time([&] { return reader.next(batch); })) break;
      if (!read_credits_.acquire(static_cast<int64_t>(batch.text.size()))) return;
      work_.push_first({count++, std::move(batch)});
    }
    parsed_.end(count);
  }

  void work() {
    BatchParser parser(build_.text_field, build_.filter, build_.duplicates,
                       build_.decode_device == "opencl" ? make_opencl_decoder() : nullptr);
    while (true) {
      auto [raw, task] = work_.pop();
      if (task) {
        encode_clock_.time([&] { encode(**task); });
        const int64_t number = (*task)->number;
        encoded_.push(number, std::move(*task));
      } else if (raw) {
        const std::string& file = name(raw->input.file);
        parsed_.push(raw->number,
                     parse_clock_.time([&] { return parser.parse(std::move(raw->input), file); }));
      } else {
        return;
      }
    }
  }

  void encode(EncodeTask& task) const {
    const Tokenizer& tokenizer = *build_.tokenizer;
    for (const Piece& piece : task.pieces) {
      if (piece.starts_document) {
        tokenizer.encode(piece.text, task.ids);
      } else {
        tokenizer.encode_continued(piece.text, task.ids);
      }
      if (piece.ends_document && tokenizer.document_end_id() >= 0)
        task.ids.push_back(tokenizer.document_end_id());
      task.piece_ends.push_back(task.ids.size());
    }
  }

  // The judge's thread.
  void judge() {
    position_ = journal_.position;
    counters_ = journal_.counters;
    num_problems_ = journal_.problems.size();
    while (auto next = parsed_.pop()) {
      const std::shared_ptr<const ParsedBatch> batch = std::move(*next);
      const auto bytes = static_cast<int64_t>(batch->input.text.size());
      std::vector<std::unique_ptr<EncodeTask>> tasks;
      judge_clock_.time([&] { tasks = tasks_of(batch); });
      for (auto& task : tasks) {
        if (!task_credits_.acquire(static_cast<int64_t>(task->text_bytes))) return;
        work_.push_second(std::move(task));
      }
      read_credits_.release(bytes);
    }
    encoded_.end(num_tasks_);
  }

  std::vector<std::unique_ptr<EncodeTask>> tasks_of(const std::shared_ptr<const ParsedBatch>& batch) {
    BatchEnd end;
    for (const RecordProblem& problem : batch->problems) {
      const std::string where =
          problem.line < 0 ? ""
                           : concat(name(batch->input.file), ":", position_.line + problem.line + 1, ": ");
      note(where + problem.message, problem.way_out, end);
    }
    counters_.bad_records += static_cast<int64_t>(batch->problems.size());
    counters_.records += batch->num_records;
    counters_.bytes += static_cast<int64_t>(batch->input.text.size());
    end.done_bytes = counters_.input_bytes + batch->input.position;
    position_.byte += batch->input.advance;
    position_.line += batch->num_lines;
    if (!batch->input.problem.empty()) {
      const std::string after = position_.line > 0 ? concat(" after line ", position_.line) : std::string();
      note(concat(name(batch->input.file), ": ", batch->input.problem, after), batch->input.way_out, end);
      ++counters_.bad_files;
    }
    if (batch->input.ends_file) {
      position_ = {batch->input.file + 1, 0, 0};
      ++counters_.files;
      counters_.input_bytes += batch->input.position;
      end.checksum = batch->input.checksum;
    }
    std::vector<std::unique_ptr<EncodeTask>> tasks;
    for (const ParsedDocument& document : batch->documents)
      if (keeps(document, *batch)) add_document(document, batch, tasks);
    if (tasks.empty()) add_task(batch, tasks);
    end.position = position_;
    end.counters = counters_;
    tasks.back()->end = std::move(end);
    return tasks;
  }

  void note(const std::string& problem, const std::string& way_out, BatchEnd& end) {
    if (!build_.skips_errors) throw UserError(problem + way_out);
    if (num_problems_ >= kMostProblems) return;
    ++num_problems_;
    end.problems.push_back(problem);
  }

  bool keeps(const ParsedDocument& document, const ParsedBatch& batch) {
    switch (document.verdict) {
      case Verdict::empty:
        ++counters_.empty;
        return false;
      case Verdict::too_short:
        ++counters_.too_short;
        return false;
      case Verdict::too_long:
        ++counters_.too_long;
        return false;
      case Verdict::unprintable:
        ++counters_.unprintable;
        return false;
      case Verdict::kept:
        break;
    }
    if (build_.duplicates != Duplicates::keep) {
      if (const auto counter = kept_.place(document.exact, signature(batch, document.signature))) {
        ++(counters_.*counter);
        return false;
      }
    }
    ++counters_.documents;
    counters_.text_bytes += static_cast<int64_t>(document.text.size());
    return true;
  }

  static const Signature* signature(const ParsedBatch& batch, int64_t i) {
    return i < 0 ? nullptr : &batch.signatures[static_cast<size_t>(i)];
  }

  void add_task(const std::shared_ptr<const ParsedBatch>& batch,
                std::vector<std::unique_ptr<EncodeTask>>& tasks) {
    tasks.push_back(std::make_unique<EncodeTask>());
    tasks.back()->number = num_tasks_++;
    tasks.back()->batch = batch;
  }

  void add_document(const ParsedDocument& document, const std::shared_ptr<const ParsedBatch>& batch,
                    std::vector<std::unique_ptr<EncodeTask>>& tasks) {
    const auto add_piece = [&](std::string_view text, bool starts, bool ends) {
      if (tasks.empty() || tasks.back()->text_bytes >= kTaskBytes) add_task(batch, tasks);
      tasks.back()->pieces.push_back({text, starts, ends, document.exact, document.signature});
      tasks.back()->text_bytes += text.size();
    };
    std::string_view text = document.text;
    bool starts = true;
    while (text.size() > kTaskBytes) {
      const size_t cut = build_.tokenizer->split_point(text, kTaskBytes);
      if (cut >= text.size()) break;
      add_piece(text.substr(0, cut), starts, false);
      starts = false;
      text.remove_prefix(cut);
    }
    add_piece(text, starts, true);
  }

  // The caller's thread.
  void write() {
    double last_commit = steady_seconds();
    int64_t uncommitted = 0;
    while (auto task = encoded_.pop()) {
      EncodeTask& done = **task;
      write_clock_.time([&] { add_tokens(done); });
      task_credits_.release(static_cast<int64_t>(done.text_bytes));
      uncommitted +=
          static_cast<int64_t>(done.ids.size()) * size_of(token_type_for(build_.tokenizer->vocab_size()));
      if (!done.end) continue;
      apply(*done.end);
      if (build_.progress) build_.progress(std::min(done.end->done_bytes, total_bytes_), total_bytes_);
      if (uncommitted < build_.commit_bytes && steady_seconds() - last_commit < kCommitSeconds) continue;
      write_clock_.time([&] { commit(); });
      uncommitted = 0;
      last_commit = steady_seconds();
    }
    if (interrupted_) commit();
  }

  void add_tokens(const EncodeTask& task) {
    size_t begin = 0;
    for (size_t i = 0; i < task.pieces.size(); ++i) {
      const Piece& piece = task.pieces[i];
      writer_.add(std::span(task.ids).subspan(begin, task.piece_ends[i] - begin));
      begin = task.piece_ends[i];
      if (!piece.ends_document) continue;
      writer_.end_document();
      kept_.log(piece.exact, signature(*task.batch, piece.signature));
    }
  }

  void apply(BatchEnd& end) {
    journal_.position = end.position;
    journal_.counters = end.counters;
    journal_.counters.tokens = writer_.num_tokens();
    if (!end.checksum.empty()) journal_.checksums.push_back(std::move(end.checksum));
    for (std::string& problem : end.problems) {
      log_warn("left out: ", problem);
      journal_.problems.push_back(std::move(problem));
    }
  }

  void commit() {
    journal_.corpus = writer_.sync();
    journal_.fingerprint_bytes = kept_.sync();
    write_journal(journal_, work_folder(build_.prefix));
    if (build_.keeps_partial) writer_.keep();  // from now on there is something to go on from
  }

  const CorpusBuild& build_;
  CorpusWriter& writer_;
  BuildJournal& journal_;
  const int num_workers_;
  int64_t total_bytes_ = 0;

  Credits read_credits_, task_credits_;
  WorkQueue<ReadTask, std::unique_ptr<EncodeTask>> work_;
  OrderedQueue<std::unique_ptr<ParsedBatch>> parsed_;
  OrderedQueue<std::unique_ptr<EncodeTask>> encoded_;
  std::atomic<bool> interrupted_{false};
  std::mutex error_mutex_;
  std::exception_ptr error_;
  StageClock read_clock_, parse_clock_, judge_clock_, encode_clock_, write_clock_;

  KeptDocuments kept_;
  // Of the judge.
  InputPosition position_;
  BuildCounters counters_;
  size_t num_problems_ = 0;
  int64_t num_tasks_ = 0;
};

}  // namespace

void run_pipeline(const CorpusBuild& build, CorpusWriter& writer, BuildJournal& journal,
                  BuildReport& report) {
  Pipeline pipeline(build, writer, journal);
  pipeline.run();
  pipeline.report(report);
}

}  // namespace moebius::data
