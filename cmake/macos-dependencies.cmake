# Preset macos: what the program `quire` needs besides MLX and PCRE2
# (QuirePcre2.cmake) are headers alone, CLI11 and nlohmann_json, from the machine
# that cross-compiles. A folder of links shows the compiler these headers and none
# of the host's others.
set(include_dir "${CMAKE_BINARY_DIR}/include")
file(MAKE_DIRECTORY "${include_dir}")
foreach(header CLI nlohmann)
  find_file(
    found_${header} ${header}
    PATHS /usr/include /usr/local/include
    NO_DEFAULT_PATH)
  if(NOT found_${header})
    message(
      WARNING "SKIPPED: the program quire, because there is no ${header}"
              " (Debian: libcli11-dev nlohmann-json3-dev)")
    set(QUIRE_BUILD_TOOLS OFF) # not in the cache: the header may come
    return()
  endif()
  file(CREATE_LINK "${found_${header}}" "${include_dir}/${header}" SYMBOLIC)
endforeach()

macro(quire_provide_dependency method name)
  if("${name}" STREQUAL "CLI11" OR "${name}" STREQUAL "nlohmann_json")
    if(NOT TARGET ${name}::${name})
      add_library(${name}::${name} INTERFACE IMPORTED GLOBAL)
      target_include_directories(${name}::${name} SYSTEM
                                 INTERFACE "${CMAKE_BINARY_DIR}/include")
    endif()
    set(${name}_FOUND TRUE)
  else()
    find_package(${name} ${ARGN} BYPASS_PROVIDER)
  endif()
endmacro()
cmake_language(SET_DEPENDENCY_PROVIDER quire_provide_dependency
               SUPPORTED_METHODS FIND_PACKAGE)
