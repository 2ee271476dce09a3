// What the subcommands of `moebius queue` share.
#pragma once

#include <filesystem>
#include <string>

namespace CLI {
class App;
}

namespace moebius::cli {

// Adds --queue to a subcommand.
void add_queue_option(CLI::App& command, std::string& folder);
// The folder it names; else $MOEBIUS_QUEUE, else moebius/queue below $XDG_DATA_HOME (~/.local/share).
std::filesystem::path queue_folder(const std::string& option);

// "90s", "45m", "4h", "2d", "1h30m" or a number of seconds. UserError naming `what` otherwise.
double parse_duration(const std::string& text, const char* what);
// "2031-05-17", "2031-05-17T09:03" or "...:03Z", in UTC, as seconds since 1970.
double parse_time(const std::string& text, const char* what);

}  // namespace moebius::cli
