// moebius data build
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_data_build_command(CLI::App& parent);

}  // namespace moebius::cli
