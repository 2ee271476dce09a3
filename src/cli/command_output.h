// What a subcommand prints, for tests.
#pragma once

#include <CLI/CLI.hpp>
#include <iostream>
#include <sstream>
#include <string>

#include "base/error.h"

namespace moebius::cli {

// What `moebius COMMAND_LINE` prints on stdout, with the subcommand that `add` adds; the text of a UserError
// after "error: ", that of a wrong command line after "usage: ".
inline std::string output_of(void (*add)(CLI::App&), const std::string& command_line) {
  CLI::App app;
  add(app);
  std::ostringstream out;
  std::streambuf* const before = std::cout.rdbuf(out.rdbuf());
  try {
    app.parse(command_line);
  } catch (const UserError& error) {
    out << "error: " << error.what();
  } catch (const CLI::ParseError& error) {
    out << "usage: " << error.what();
  }
  std::cout.rdbuf(before);
  return out.str();
}

}  // namespace moebius::cli
