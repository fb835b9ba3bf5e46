# Cross-compiles for arm64 macOS 14 on Linux: zig's clang with its macOS headers
# and libc++, from a pinned wheel. cmake/macos-sdk adds the few SDK headers that
# metal-cpp asks for. Frameworks are resolved on the Mac (dynamic_lookup);
# scripts/check-macos-symbols checks that every symbol has somewhere to come
# from.
list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}/..")
include(QuireFetchWheel)
quire_fetch_wheel(
  zig_wheel ziglang 0.13.0
  3ce0c9f16547e5d61b32e0d226926e9a2552ef4b91fccf7ab5ea1a623a77824b)
set(zig "${zig_wheel}/ziglang/zig")
file(CHMOD "${zig}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)

set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_SYSTEM_VERSION 23) # of Darwin: macOS 14
set(CMAKE_SIZEOF_VOID_P 8) # zig strips what CMake would read it from
set(CMAKE_OSX_SYSROOT "")
set(CMAKE_OSX_DEPLOYMENT_TARGET 14.0)
# CMake wants one program for each of these.
function(zig_tool variable name)
  set(wrapper "${zig_wheel}/quire-${name}")
  if(NOT EXISTS "${wrapper}")
    string(JOIN " " command "\"${zig}\"" ${ARGN})
    file(WRITE "${wrapper}" "#!/bin/sh\nexec ${command} \"$@\"\n")
    file(CHMOD "${wrapper}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
  endif()
  set(${variable}
      "${wrapper}"
      PARENT_SCOPE)
endfunction()
zig_tool(CMAKE_C_COMPILER cc cc -target aarch64-macos.14.0)
zig_tool(CMAKE_CXX_COMPILER c++ c++ -target aarch64-macos.14.0)
zig_tool(CMAKE_AR ar ar)
zig_tool(CMAKE_RANLIB ranlib ranlib)
set(CMAKE_INSTALL_NAME_TOOL "${CMAKE_COMMAND}" -E true)
set(CMAKE_CXX_FLAGS_INIT "-isystem ${CMAKE_CURRENT_LIST_DIR}/../macos-sdk")
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-Wl,-undefined,dynamic_lookup")
set(CMAKE_EXE_LINKER_FLAGS_INIT "-Wl,-undefined,dynamic_lookup")

set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY NEVER)

# CMake asks the host for its macOS version, and without one knows no rpath.
set(CMAKE_USER_MAKE_RULES_OVERRIDE
    "${CMAKE_CURRENT_LIST_DIR}/macos-arm64-rules.cmake")
