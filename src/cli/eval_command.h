// moebius eval
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_eval_command(CLI::App& app);

}  // namespace moebius::cli
