// moebius ckpt: what is in a checkpoint, and shards of several processes made into few
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_ckpt_command(CLI::App& app);

}  // namespace moebius::cli
