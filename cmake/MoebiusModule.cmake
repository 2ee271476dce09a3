# moebius_module(<name> SOURCES … [DEPS …] [TESTS …] [TEST_LABELS …] [TORCH])
# One static library `moebius_<name>` per folder of src/, and one test program `moebius_<name>_test` from its
# *_test.cpp files. TORCH modules compile with the shared precompiled header of libtorch.

add_library(moebius_options INTERFACE)
target_include_directories(moebius_options INTERFACE ${CMAKE_SOURCE_DIR}/src)
target_compile_options(moebius_options INTERFACE -Wall -Wextra $<$<BOOL:${MOEBIUS_WERROR}>:-Werror>)
if(MOEBIUS_SANITIZE)
  target_compile_options(moebius_options INTERFACE -fsanitize=address,undefined -fno-sanitize-recover=all
    -fno-omit-frame-pointer)
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    # Instrumented code makes g++ see uninitialised values where there are none (std::optional<at::Generator>).
    target_compile_options(moebius_options INTERFACE -Wno-maybe-uninitialized)
  endif()
  target_link_options(moebius_options INTERFACE -fsanitize=address,undefined)
endif()

set(moebius_torch_checks)
if(MOEBIUS_SANITIZE)
  set(moebius_torch_checks -fno-sanitize=alignment,null,object-size,pointer-overflow,return,vptr)
endif()

if(CMAKE_UNITY_BUILD AND CMAKE_CXX_COMPILER_ID STREQUAL GNU)
  # In a joined source g++ takes every file but the last for a header, and warns of anonymous types in it.
  target_compile_options(moebius_options INTERFACE -Wno-subobject-linkage)
endif()

# The precompiled header is built once, in this target, and reused by every TORCH module and test.
add_library(moebius_torch_pch OBJECT EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/cmake/torch_pch.cpp)
target_link_libraries(moebius_torch_pch PUBLIC moebius_options moebius::torch)
target_precompile_headers(moebius_torch_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/torch_pch.h)

# Tests have one of their own, with googletest in it and lighter optimisation: they are a third of the build.
if(MOEBIUS_TESTS)
  add_library(moebius_test_pch OBJECT EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/cmake/test_pch.cpp)
  target_link_libraries(moebius_test_pch PUBLIC moebius_options moebius::torch GTest::gmock)
  target_compile_options(moebius_test_pch PRIVATE $<$<CONFIG:Release>:-O1>)
  target_precompile_headers(moebius_test_pch PRIVATE ${CMAKE_SOURCE_DIR}/cmake/test_pch.h)
endif()
if(MOEBIUS_SANITIZE)
  # In libtorch's headers these checks double the time of compiling; what they find there crashes under
  # AddressSanitizer, or is libtorch's. Modules without libtorch (parsers, kernels) keep them.
  foreach(target moebius_torch_pch moebius_test_pch)
    if(TARGET ${target})
      target_compile_options(${target} PRIVATE ${moebius_torch_checks})
    endif()
  endforeach()
endif()

# `header`: the target whose precompiled header serves.
function(moebius_use_torch target header)
  target_link_libraries(${target} PUBLIC moebius::torch)
  target_compile_options(${target} PRIVATE ${moebius_torch_checks})
  target_precompile_headers(${target} REUSE_FROM ${header})
  get_target_property(type ${target} TYPE)
  if(type STREQUAL EXECUTABLE)
    # CMake compiles programs with -fPIE; the precompiled header is only valid with its own -fPIC.
    set_target_properties(${target} PROPERTIES POSITION_INDEPENDENT_CODE OFF)
    target_compile_options(${target} PRIVATE -fPIC)
  endif()
endfunction()

function(moebius_test target)
  cmake_parse_arguments(arg "TORCH" "" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT MOEBIUS_TESTS)
    return()
  endif()
  add_executable(${target} ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE moebius_options ${arg_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  if(arg_TORCH)
    moebius_use_torch(${target} moebius_test_pch)
  endif()
  if(NOT arg_LABELS)
    set(arg_LABELS fast)
  endif()
  add_test(NAME ${target} COMMAND ${target})
  set_tests_properties(${target} PROPERTIES LABELS "${arg_LABELS}" TIMEOUT 600
    ENVIRONMENT "MOEBIUS_SOURCE_DIR=${CMAKE_SOURCE_DIR};GTEST_OUTPUT=xml:${CMAKE_BINARY_DIR}/test-results/${target}.xml")
  # Tests run beside each other, with more threads than cores: one that waits must not spin.
  set_property(TEST ${target} APPEND PROPERTY ENVIRONMENT "OMP_WAIT_POLICY=passive")
  if(MOEBIUS_SANITIZE AND arg_TORCH)
    # libtorch keeps objects for the life of the process; leaks are looked for in the modules without it.
    set_property(TEST ${target} APPEND PROPERTY ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0")
  endif()
endfunction()

# Sources spend much of their time on headers, so `count` of them are compiled as one: fewer where each is long, so that
# a changed one still builds in seconds. (CMAKE_UNITY_BUILD joins eight, tests too.)
function(moebius_join target count)
  if(CMAKE_UNITY_BUILD)
    return()
  endif()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${count})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE -Wno-subobject-linkage)  # as above
  endif()
endfunction()

function(moebius_module name)
  cmake_parse_arguments(arg "TORCH" "" "SOURCES;DEPS;TESTS;TEST_LABELS" ${ARGN})
  add_library(moebius_${name} STATIC ${arg_SOURCES})
  add_library(moebius::${name} ALIAS moebius_${name})
  target_link_libraries(moebius_${name} PUBLIC moebius_options ${arg_DEPS})
  set(joined 4)
  if(arg_TORCH)
    moebius_use_torch(moebius_${name} moebius_torch_pch)
    set(torch TORCH)
    set(joined 2)
  endif()
  moebius_join(moebius_${name} ${joined})
  if(arg_TESTS)
    moebius_test(moebius_${name}_test SOURCES ${arg_TESTS} DEPS moebius_${name} LABELS ${arg_TEST_LABELS} ${torch})
  endif()
endfunction()
