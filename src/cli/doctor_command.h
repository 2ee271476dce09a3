// `moebius doctor [--json]`: what this machine has, what moebius can use of it, what is missing and how to
// get it. Reads only; exit code 0 whatever is missing.
#pragma once

namespace CLI {
class App;
}

namespace moebius::cli {

void add_doctor_command(CLI::App& app);

}  // namespace moebius::cli
