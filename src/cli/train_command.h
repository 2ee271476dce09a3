// moebius train
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_train_command(CLI::App& app);

}  // namespace moebius::cli
