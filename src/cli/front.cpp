// bin/moebius: `moebius queue` and `moebius moe` itself, and everything else by becoming
// lib/moebius/moebius-torch. Loading libtorch takes 0.3 s, which a command that needs none of it should not
// cost (docs/adr/0015).
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "cli/moe_command.h"
#include "cli/queue_command.h"
#include "cli/run_app.h"

int main(int argc, char** argv) {
  using namespace moebius;
  const std::string_view command = argc > 1 ? argv[1] : "";
  if (command == "queue" || command == "moe") {
    return cli::run_app(argc, argv, [](CLI::App& app) {
      cli::add_queue_command(app);
      cli::add_moe_command(app);
    });
  }
  std::error_code error;
  const std::filesystem::path program =
      std::filesystem::read_symlink("/proc/self/exe", error).parent_path().parent_path() /
      "lib/moebius/moebius-torch";
  ::execv(program.c_str(), argv);
  log_error("cannot start ", program.string(), ": ", std::strerror(errno),
            "; it belongs to this program, build or install both again");
  return kExitFailure;
}
