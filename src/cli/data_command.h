// `moebius data`: build and inspect corpora, train tokenizers.
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

// Adds the subcommand; its work happens in the callbacks, UserErrors leave as exceptions.
void add_data_command(CLI::App& app);

}  // namespace moebius::cli
