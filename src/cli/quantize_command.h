// moebius quantize
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_quantize_command(CLI::App& app);

}  // namespace moebius::cli
