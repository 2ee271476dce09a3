// moebius convert
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_convert_command(CLI::App& app);

}  // namespace moebius::cli
