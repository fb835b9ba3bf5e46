# quire_pcre2: the 8-bit PCRE2 of the program's tokenizer. The system's own, or,
# where Linux cross-compiles for macOS and there is none to find, built from the
# source package that Debian 12's is built from.
if(NOT (CMAKE_CROSSCOMPILING AND CMAKE_SYSTEM_NAME STREQUAL "Darwin"))
  find_library(QUIRE_PCRE2_LIBRARY pcre2-8 REQUIRED)
  find_path(QUIRE_PCRE2_INCLUDE_DIR pcre2.h REQUIRED)
  add_library(quire_pcre2 INTERFACE)
  target_link_libraries(quire_pcre2 INTERFACE "${QUIRE_PCRE2_LIBRARY}")
  target_include_directories(quire_pcre2
                             INTERFACE "${QUIRE_PCRE2_INCLUDE_DIR}")
  return()
endif()

include(QuireFetchDebianSource)
quire_fetch_debian_source(
  pcre2_source libpcre2-dev pcre2_10.42.orig.tar.gz
  c33b418e3b936ee3153de2c61cc638e7e4fe3156022a5c77d0711bcbb9d64f1f)

# The build that its NON-AUTOTOOLS-BUILD describes, without JIT.
enable_language(C)
set(pcre2_dir "${CMAKE_CURRENT_BINARY_DIR}/pcre2")
configure_file("${pcre2_source}/src/config.h.generic" "${pcre2_dir}/config.h"
               COPYONLY)
configure_file("${pcre2_source}/src/pcre2.h.generic" "${pcre2_dir}/pcre2.h"
               COPYONLY)
configure_file("${pcre2_source}/src/pcre2_chartables.c.dist"
               "${pcre2_dir}/pcre2_chartables.c" COPYONLY)
set(pcre2_files
    auto_possess
    compile
    config
    context
    convert
    dfa_match
    error
    extuni
    find_bracket
    jit_compile
    maketables
    match
    match_data
    newline
    ord2utf
    pattern_info
    script_run
    serialize
    string_utils
    study
    substitute
    substring
    tables
    ucd
    valid_utf
    xclass)
list(TRANSFORM pcre2_files PREPEND "${pcre2_source}/src/pcre2_")
list(TRANSFORM pcre2_files APPEND ".c")
add_library(quire_pcre2 STATIC ${pcre2_files} "${pcre2_dir}/pcre2_chartables.c")
target_compile_definitions(
  quire_pcre2
  PRIVATE HAVE_CONFIG_H HAVE_MEMMOVE PCRE2_CODE_UNIT_WIDTH=8 SUPPORT_UNICODE
  PUBLIC PCRE2_STATIC)
target_include_directories(quire_pcre2 SYSTEM PUBLIC "${pcre2_dir}"
                           PRIVATE "${pcre2_source}/src")
