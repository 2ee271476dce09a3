// `moebius plan`: what a config would train, and with how much memory, before anything is allocated.
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_plan_command(CLI::App& app);

}  // namespace moebius::cli
