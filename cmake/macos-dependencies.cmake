# Preset macos: what the program `quire` needs besides MLX, from the machine that
# cross-compiles. CLI11 and nlohmann_json are headers alone; of PCRE2 only the
# header is at hand, its functions are left open as those of the frameworks are
# (scripts/check-macos-symbols). A folder of links shows the compiler these
# headers and none of the host's others.
set(include_dir "${CMAKE_BINARY_DIR}/include")
file(MAKE_DIRECTORY "${include_dir}")
foreach(header CLI nlohmann pcre2.h)
  find_file(
    found_${header} ${header}
    PATHS /usr/include /usr/local/include
    NO_DEFAULT_PATH)
  if(NOT found_${header})
    message(
      WARNING "SKIPPED: the program quire, because there is no ${header}"
              " (Debian: libcli11-dev nlohmann-json3-dev libpcre2-dev)")
    set(QUIRE_BUILD_TOOLS OFF) # not in the cache: the header may come
    return()
  endif()
  file(CREATE_LINK "${found_${header}}" "${include_dir}/${header}" SYMBOLIC)
endforeach()

set(QUIRE_PCRE2_INCLUDE_DIR
    "${include_dir}"
    CACHE PATH "")
set(QUIRE_PCRE2_LIBRARY
    "-Wl,-undefined,dynamic_lookup"
    CACHE STRING "")

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
