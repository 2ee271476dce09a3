// What the commands of the program need: half of the time of each is CLI11's templates (see
// src/cli/CMakeLists.txt).
#pragma once
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "torch_pch.h"
