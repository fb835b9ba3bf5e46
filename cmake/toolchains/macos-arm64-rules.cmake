# Read after CMake's own rules for Darwin: see macos-arm64.cmake.
set(CMAKE_SHARED_LIBRARY_RUNTIME_C_FLAG "-Wl,-rpath,")
