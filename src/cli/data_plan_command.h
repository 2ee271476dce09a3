// `moebius data plan` and `moebius data stats`: what batch planners make of a corpus or a list of document
// lengths, before any training.
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

// Adds both below the `data` command.
void add_data_plan_commands(CLI::App& data);

}  // namespace moebius::cli
