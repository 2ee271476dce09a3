// `moebius bench`: times the op cases (ops/cases) and, on demand, checks them.
#pragma once

#include <string>
#include <vector>

#include "ops/cases/case.h"

namespace CLI {
class App;
}

namespace moebius::cli {

void add_bench_command(CLI::App& app);

// The cases that the words name: a full name, the name of an op (all its cases), or a pattern with * and ?.
// Without `with_large`, the large cases only when named in full. Throws UserError for a word that fits
// nothing, with the nearest name.
std::vector<const ops::cases::OpCase*> select_cases(const std::vector<std::string>& words, bool with_large);

}  // namespace moebius::cli
