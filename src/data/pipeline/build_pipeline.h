// The stages of a corpus build on their threads (corpus_builder.h says what they do together):
//
//   reader ─> parse ─> judge ─> tokenize ─> writer
//   1 thread  N thr.   1 thr.   N threads   the caller's
//
// The N threads serve both parse and tokenize, the latter first. The judge takes batches in order: it counts,
// ends the build at an error, drops duplicates of earlier documents, and cuts what stays into tasks of 256
// KiB. The writer takes those in order and notes now and then, when all is durable, where the build stands.
#pragma once

#include "data/corpus_builder.h"

namespace moebius::data {

// Runs the stages from `journal` (a fresh one, or what read_journal gave) to the end of the input, and leaves
// journal and report up to date. BuildInterrupted when everything read until then is written
// and noted. Otherwise as build_corpus.
void run_pipeline(const CorpusBuild& build, CorpusWriter& writer, BuildJournal& journal, BuildReport& report);

}  // namespace moebius::data
