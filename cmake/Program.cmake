# The program as a whole: where it lies in the build tree, the target that ./moebius builds, and the install tree.
#
#   bin/moebius                    what users start; needs no libtorch but for its libgomp
#   lib/moebius/moebius-torch      what it becomes for most commands. DT_RPATH of both: lib/moebius, then the libtorch
#                                  they were built with
#   bin/moebius-powerd             the daemon that may set clocks (docs/energy.md); needs no libtorch
#   lib/moebius/libmoebius_cuda.so the CUDA plug-in, when it was built
#   lib/moebius/*.so.*             libraries of the distribution, so that the tree runs where they are not installed
#   share/moebius/                 configs and example data
#
# libtorch itself is not copied (1.2 GB). The tree may be moved on the same machine; on another one set LD_LIBRARY_PATH
# to the lib folders of its libtorch (tools/gpu_run does that for a PyTorch installation).

add_custom_target(moebius_program)
if(NOT TARGET moebius)
  return()
endif()

set_target_properties(moebius moebius-powerd PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set_target_properties(moebius-torch PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/moebius)
add_dependencies(moebius_program moebius moebius-torch moebius-powerd)

# DT_RPATH instead of DT_RUNPATH: the distribution's libraries lie beside each other without run paths of their own,
# and only DT_RPATH of a program is also searched for what they need.
file(RELATIVE_PATH bin_to_private /prefix/${CMAKE_INSTALL_BINDIR} /prefix/lib/moebius)
set_target_properties(moebius PROPERTIES INSTALL_RPATH "$ORIGIN/${bin_to_private};${MOEBIUS_TORCH_RUN_PATH}")
set_target_properties(moebius-torch PROPERTIES INSTALL_RPATH "$ORIGIN;${MOEBIUS_TORCH_RUN_PATH}")
foreach(program moebius moebius-torch)
  target_link_options(${program} PRIVATE -Wl,--disable-new-dtags)
endforeach()
install(TARGETS moebius-powerd DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS moebius RUNTIME_DEPENDENCY_SET moebius_runtime DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS moebius-torch RUNTIME_DEPENDENCY_SET moebius_runtime DESTINATION lib/moebius)

if(TARGET moebius_cuda)
  set_target_properties(moebius_cuda PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib/moebius
    INSTALL_RPATH "$ORIGIN;${MOEBIUS_TORCH_RUN_PATH}")
  target_link_options(moebius_cuda PRIVATE -Wl,--disable-new-dtags)
  add_dependencies(moebius_program moebius_cuda)
  install(TARGETS moebius_cuda LIBRARY DESTINATION lib/moebius)
endif()

install(RUNTIME_DEPENDENCY_SET moebius_runtime
  PRE_EXCLUDE_REGEXES
    "^lib(torch|c10|shm|gomp|cu|nv)" "^ld-linux" "^lib(c|m|dl|rt|pthread|util|resolv|stdc[+][+]|gcc_s)\\.so"
    "^linux-vdso" "^lib(asan|ubsan|lsan)\\.so"
  LIBRARY DESTINATION lib/moebius)

install(DIRECTORY ${CMAKE_SOURCE_DIR}/configs DESTINATION share/moebius)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/examples/data DESTINATION share/moebius/examples)
