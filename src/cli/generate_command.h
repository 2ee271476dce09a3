// moebius generate
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_generate_command(CLI::App& app);

}  // namespace moebius::cli
