# Third-party libraries from the distribution (names and versions: THIRD_PARTY.md).
find_package(Threads REQUIRED)
find_package(ZLIB REQUIRED)
find_package(CURL 7.85 REQUIRED)  # its headers; CURLOPT_PROTOCOLS_STR
find_package(SQLite3 3.37 REQUIRED)  # STRICT tables
find_package(fmt REQUIRED)
find_package(spdlog REQUIRED)
find_package(nlohmann_json REQUIRED)
find_package(CLI11 REQUIRED)
find_package(tomlplusplus REQUIRED)
find_package(prometheus-cpp REQUIRED)
find_library(MOEBIUS_SENTENCEPIECE sentencepiece REQUIRED)
find_library(MOEBIUS_SENTENCEPIECE_TRAIN sentencepiece_train REQUIRED)
find_library(MOEBIUS_CIVETWEB civetweb REQUIRED)
find_library(MOEBIUS_HWY hwy REQUIRED)
find_library(MOEBIUS_XXHASH xxhash REQUIRED)
if(MOEBIUS_TESTS)
  find_package(GTest REQUIRED)
endif()
