# quire_embed_metal(TARGET FUNCTION SOURCE): makes one self-contained text of a
# .metal file, our own headers inlined, and adds to TARGET a function
# `const char* quire::metal::FUNCTION()` that returns it.
#
# The text is build/.../FUNCTION.metal (target property QUIRE_METAL_TEXTS lists
# all of them): what is compiled on a Mac is what the host execution compiles.
# #line directives keep an error's file and line those of the sources.
set(QUIRE_EMBED_METAL_SCRIPT "${CMAKE_CURRENT_LIST_FILE}")

function(quire_embed_metal target function source)
  set(input "${CMAKE_CURRENT_SOURCE_DIR}/${source}")
  set(text "${CMAKE_CURRENT_BINARY_DIR}/${function}.metal")
  set(code "${CMAKE_CURRENT_BINARY_DIR}/${function}.cpp")
  add_custom_command(
    OUTPUT "${text}" "${code}"
    COMMAND
      "${CMAKE_COMMAND}" -D "ROOT=${PROJECT_SOURCE_DIR}/src" -D
      "INPUT=${input}" -D "TEXT=${text}" -D "CODE=${code}" -D
      "FUNCTION=${function}" -P "${QUIRE_EMBED_METAL_SCRIPT}"
    DEPENDS "${input}" "${QUIRE_EMBED_METAL_SCRIPT}"
            "${PROJECT_SOURCE_DIR}/src/kernels/attention_state.h"
            "${CMAKE_CURRENT_SOURCE_DIR}/decode_split.h"
            "${CMAKE_CURRENT_SOURCE_DIR}/paged_decode_matrix.h"
            "${CMAKE_CURRENT_SOURCE_DIR}/params.h"
            "${CMAKE_CURRENT_SOURCE_DIR}/row_layout.h"
    COMMENT "Embedding ${source}")
  target_sources(${target} PRIVATE "${code}")
  set_property(
    TARGET ${target}
    APPEND
    PROPERTY QUIRE_METAL_TEXTS "${text}")
endfunction()

if(NOT CMAKE_SCRIPT_MODE_FILE)
  return()
endif()

cmake_minimum_required(VERSION 3.25)

# Sets OUT to the text of FILE (relative to ROOT) with its own includes inlined,
# each once.
function(inline_file out file)
  get_property(seen GLOBAL PROPERTY QUIRE_INLINED)
  if(file IN_LIST seen)
    set(${out}
        ""
        PARENT_SCOPE)
    return()
  endif()
  set_property(GLOBAL APPEND PROPERTY QUIRE_INLINED "${file}")
  file(READ "${ROOT}/${file}" rest)
  string(REPLACE "#pragma once\n" "\n" rest "${rest}")
  set(result "#line 1 \"${file}\"\n")
  set(line 1)
  while(rest MATCHES "#include \"([^\"]+)\"\n")
    set(directive "${CMAKE_MATCH_0}")
    set(included "${CMAKE_MATCH_1}")
    string(FIND "${rest}" "${directive}" at)
    string(SUBSTRING "${rest}" 0 ${at} before)
    string(LENGTH "${directive}" length)
    math(EXPR at "${at} + ${length}")
    string(SUBSTRING "${rest}" ${at} -1 rest)
    string(REGEX REPLACE "[^\n]" "" newlines "${before}")
    string(LENGTH "${newlines}" newlines)
    math(EXPR line "${line} + ${newlines} + 1")
    inline_file(inlined "${included}")
    string(APPEND result "${before}${inlined}#line ${line} \"${file}\"\n")
  endwhile()
  set(${out}
      "${result}${rest}"
      PARENT_SCOPE)
endfunction()

file(RELATIVE_PATH relative "${ROOT}" "${INPUT}")
inline_file(text "${relative}")
file(WRITE "${TEXT}" "${text}")
file(
  WRITE "${CODE}"
  "// Generated from ${relative}.\n#include \"kernels/metal/source.h\"\n\n"
  "namespace quire::metal {\n\nconst char* ${FUNCTION}() {\n"
  "  return R\"msl(${text})msl\";\n}\n\n}  // namespace quire::metal\n")
