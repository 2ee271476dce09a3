// `moebius moe`: what can be learnt from the logged load of experts, without training.
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_moe_command(CLI::App& app);

}  // namespace moebius::cli
