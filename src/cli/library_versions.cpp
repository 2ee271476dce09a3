// Versions of the distribution's libraries at compile time. They come from CMake's packages (a definition per
// library) because headers of the same name lie in libtorch's include folder as well.
#include "cli/doctor_report.h"

namespace moebius::cli {

std::vector<LibraryVersion> compiled_library_versions() {
  return {
      {"Highway", MOEBIUS_HIGHWAY_VERSION, "SIMD kernels on the CPU"},
      {"SentencePiece", MOEBIUS_SENTENCEPIECE_VERSION, "tokenizers"},
      {"nlohmann-json", MOEBIUS_JSON_VERSION, "metrics, manifests"},
      {"CLI11", MOEBIUS_CLI11_VERSION, "command line"},
      {"toml++", MOEBIUS_TOML_VERSION, "configuration files"},
      {"spdlog", MOEBIUS_SPDLOG_VERSION, "logging"},
      {"fmt", MOEBIUS_FMT_VERSION, "logging"},
      {"prometheus-cpp", MOEBIUS_PROMETHEUS_VERSION, "metrics exporter"},
      {"xxHash", MOEBIUS_XXHASH_VERSION, "checksums"},
  };
}

}  // namespace moebius::cli
