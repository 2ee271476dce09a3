// moebius verify
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_verify_command(CLI::App& app);

}  // namespace moebius::cli
