# moebius_library_versions: compile definitions with the versions of the distribution's libraries, for `moebius doctor`.

# Version out of a pkg-config file, for libraries whose CMake package has none or that have no package.
function(moebius_pkgconfig_version variable name)
  find_file(pc ${name}.pc PATH_SUFFIXES lib/pkgconfig lib/${CMAKE_LIBRARY_ARCHITECTURE}/pkgconfig share/pkgconfig NO_CACHE)
  if(pc)
    file(STRINGS ${pc} line REGEX "^Version:")
    string(REGEX REPLACE "^Version: *" "" version "${line}")
  endif()
  if(NOT version)
    set(version "unknown")
  endif()
  set(${variable} ${version} PARENT_SCOPE)
endfunction()

moebius_pkgconfig_version(highway_version libhwy)
moebius_pkgconfig_version(sentencepiece_version sentencepiece)
moebius_pkgconfig_version(xxhash_version libxxhash)
moebius_pkgconfig_version(prometheus_version prometheus-cpp-core)
set(moebius_library_versions
  MOEBIUS_HIGHWAY_VERSION="${highway_version}"
  MOEBIUS_SENTENCEPIECE_VERSION="${sentencepiece_version}"
  MOEBIUS_XXHASH_VERSION="${xxhash_version}"
  MOEBIUS_JSON_VERSION="${nlohmann_json_VERSION}"
  MOEBIUS_CLI11_VERSION="${CLI11_VERSION}"
  MOEBIUS_TOML_VERSION="${tomlplusplus_VERSION}"
  MOEBIUS_SPDLOG_VERSION="${spdlog_VERSION}"
  MOEBIUS_FMT_VERSION="${fmt_VERSION}"
  MOEBIUS_PROMETHEUS_VERSION="${prometheus_version}")
