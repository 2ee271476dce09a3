# Imported targets for the pinned libtorch without its own CMake package (which demands a CUDA toolkit).
#   moebius::torch       torch_cpu + c10, headers; all that the binary links
#   moebius::torch_cuda  torch_cuda + c10_cuda; only the CUDA plug-in links it
# MOEBIUS_TORCH_DIR (cache or environment) names the folder that holds include/ and lib/ of torch 2.11.0.

if(NOT MOEBIUS_TORCH_DIR)
  if(DEFINED ENV{MOEBIUS_TORCH_DIR})
    set(MOEBIUS_TORCH_DIR $ENV{MOEBIUS_TORCH_DIR})
  else()
    file(GLOB candidates ${CMAKE_SOURCE_DIR}/.moebius/venv/lib/python3*/site-packages/torch)
    list(POP_FRONT candidates MOEBIUS_TORCH_DIR)
  endif()
endif()
set(MOEBIUS_TORCH_DIR "${MOEBIUS_TORCH_DIR}" CACHE PATH "Folder with include/ and lib/ of libtorch 2.11.0")

if(NOT EXISTS ${MOEBIUS_TORCH_DIR}/lib/libtorch_cpu.so)
  message(FATAL_ERROR "libtorch not found in '${MOEBIUS_TORCH_DIR}'. Run ./moebius once (it fetches the pinned "
                      "version), or set MOEBIUS_TORCH_DIR to a torch 2.11.0 folder.")
endif()
file(STRINGS ${MOEBIUS_TORCH_DIR}/include/torch/headeronly/version.h torch_version_lines REGEX "define TORCH_VERSION_")
string(REGEX REPLACE "[^0-9;]" "" torch_version "${torch_version_lines}")
if(NOT torch_version MATCHES "^2;11;0")
  message(FATAL_ERROR "${MOEBIUS_TORCH_DIR} is not torch 2.11.0 but ${torch_version}")
endif()

# The wheel's CPU half needs two CUDA runtime libraries at load time; they live beside torch in site-packages.
get_filename_component(MOEBIUS_SITE_PACKAGES ${MOEBIUS_TORCH_DIR} DIRECTORY)
set(MOEBIUS_TORCH_RUN_PATH "${MOEBIUS_TORCH_DIR}/lib;${MOEBIUS_SITE_PACKAGES}/nvidia/cu13/lib")

foreach(lib torch_cpu c10 torch_cuda c10_cuda)
  add_library(moebius_imported_${lib} SHARED IMPORTED)
  set_target_properties(moebius_imported_${lib} PROPERTIES
    IMPORTED_LOCATION ${MOEBIUS_TORCH_DIR}/lib/lib${lib}.so)
endforeach()

# gcc's OpenMP runtime is the wheel's own copy, so that torch and our kernels share one thread team.
add_library(moebius_openmp INTERFACE)
target_compile_options(moebius_openmp INTERFACE -fopenmp)
target_link_libraries(moebius_openmp INTERFACE ${MOEBIUS_TORCH_DIR}/lib/libgomp.so.1)
add_library(moebius::openmp ALIAS moebius_openmp)

add_library(moebius_torch INTERFACE)
target_include_directories(moebius_torch SYSTEM INTERFACE
  ${MOEBIUS_TORCH_DIR}/include ${MOEBIUS_TORCH_DIR}/include/torch/csrc/api/include)
# OpenMP here too, so that every user of the precompiled header compiles with the same flags.
target_link_libraries(moebius_torch INTERFACE moebius_imported_torch_cpu moebius_imported_c10 moebius::openmp)
target_link_options(moebius_torch INTERFACE -Wl,--allow-shlib-undefined)
add_library(moebius::torch ALIAS moebius_torch)

add_library(moebius_torch_cuda INTERFACE)
target_link_libraries(moebius_torch_cuda INTERFACE moebius::torch
  -Wl,--no-as-needed moebius_imported_torch_cuda moebius_imported_c10_cuda -Wl,--as-needed)
add_library(moebius::torch_cuda ALIAS moebius_torch_cuda)

set(CMAKE_BUILD_RPATH ${MOEBIUS_TORCH_RUN_PATH})
