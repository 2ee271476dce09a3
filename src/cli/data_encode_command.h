// moebius data encode
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_data_encode_command(CLI::App& parent);

}  // namespace moebius::cli
