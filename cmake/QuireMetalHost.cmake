# Building Metal kernels for the host, in one of four flavours:
#   plain   fast, nothing checked but results
#   traced  loads and stores reach lockstep.cpp: counters, races, double writers
#   asan    traced, under the address and undefined-behaviour sanitizers
#   msan    under the memory sanitizer
# All programs of a flavour are compiled and linked by QUIRE_CLANG.

# Instructions of this machine: the programs run where they are built, and
# conversions of half floats are slow without.
set(QUIRE_METAL_HOST_FLAGS -march=native -fno-vectorize -fno-slp-vectorize -g1)
# Without func,trace-pc-guard nothing is traced; without the idiom flag loads
# that become memcpy vanish; vector-combine changes the width of loads.
set(QUIRE_METAL_HOST_TRACE
    -fsanitize-coverage=func,trace-pc-guard,trace-loads,trace-stores -mllvm
    -disable-loop-idiom-all -mllvm -disable-vector-combine)
set(QUIRE_METAL_HOST_KERNEL_FLAGS
    -std=c++14
    -x
    c++
    -Wall
    -Werror
    -Wno-unknown-attributes
    -Wno-unused-function
    -Wno-unused-const-variable
    -Wno-c++17-extensions
    "-I${PROJECT_SOURCE_DIR}/tests/metal_host/shim"
    "-I${PROJECT_SOURCE_DIR}/tests/metal_host")

# Flags of kernels (KERNEL), of the harness (HARNESS) and of the link (LINK).
function(quire_metal_host_flavour flavour)
  set(sanitize)
  set(trace ${QUIRE_METAL_HOST_TRACE})
  set(harness)
  if(flavour STREQUAL "plain")
    set(trace -O2 -fPIC)
  elseif(flavour STREQUAL "asan")
    set(sanitize -fsanitize=address,undefined -fno-sanitize-recover=all)
    set(harness ${sanitize})
  elseif(flavour STREQUAL "msan")
    # The harness stays outside: MSan would need its standard library too.
    set(sanitize -fsanitize=memory -fsanitize-memory-track-origins
                 -fno-sanitize-memory-use-after-dtor)
    set(trace)
  elseif(NOT flavour STREQUAL "traced")
    message(FATAL_ERROR "No flavour ${flavour}.")
  endif()
  set(KERNEL
      -O1 ${sanitize} ${trace}
      PARENT_SCOPE)
  set(RUNTIME
      -O2 ${sanitize}
      PARENT_SCOPE)
  set(HARNESS
      -O1 ${harness}
      PARENT_SCOPE)
  set(LINK
      ${sanitize}
      PARENT_SCOPE)
endfunction()

# quire_metal_host_generate(OUT SHARD TEXT [TABLE]): host C++ of a Metal text,
# with launchers.
function(quire_metal_host_generate out shard text)
  set(code "${CMAKE_CURRENT_BINARY_DIR}/gen/${shard}.cpp")
  set(script "${PROJECT_SOURCE_DIR}/tests/metal_host/msl_to_host.py")
  add_custom_command(
    OUTPUT "${code}"
    COMMAND "${Python3_EXECUTABLE}" "${script}" "${text}" -o "${code}" --table
            ${shard} ${ARGN}
    DEPENDS "${text}" "${script}"
    COMMENT "Rewriting ${shard} for the host")
  set(${out}
      "${code}"
      PARENT_SCOPE)
endfunction()

# quire_metal_host_compile(OUT OBJECT SOURCE FLAGS...): one object by clang.
function(quire_metal_host_compile out object source)
  set(${out}
      "${object}"
      PARENT_SCOPE)
  # Programs of a flavour share objects.
  get_property(known GLOBAL PROPERTY QUIRE_METAL_HOST_OBJECTS)
  if(object IN_LIST known)
    return()
  endif()
  set_property(GLOBAL APPEND PROPERTY QUIRE_METAL_HOST_OBJECTS "${object}")
  add_custom_command(
    OUTPUT "${object}"
    COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} "${QUIRE_CLANG}" ${ARGN} -MMD -MF
            "${object}.d" -c "${source}" -o "${object}"
    DEPENDS "${source}"
    DEPFILE "${object}.d"
    COMMENT "Compiling ${object} by clang"
    COMMAND_EXPAND_LISTS)
endfunction()

# quire_metal_host_objects(OUT FLAVOUR SHARDS...): objects of the runtime, of
# the shards' kernels (gen/SHARD.cpp must be generated) and of their table.
function(quire_metal_host_objects out flavour)
  quire_metal_host_flavour(${flavour})
  set(dir "${CMAKE_CURRENT_BINARY_DIR}/${flavour}")
  file(MAKE_DIRECTORY "${dir}")
  set(objects)
  set(declarations)
  set(entries)
  foreach(shard IN LISTS ARGN)
    quire_metal_host_compile(
      object "${dir}/${shard}.o" "${CMAKE_CURRENT_BINARY_DIR}/gen/${shard}.cpp"
      ${QUIRE_METAL_HOST_KERNEL_FLAGS} ${QUIRE_METAL_HOST_FLAGS} ${KERNEL})
    list(APPEND objects "${object}")
    string(APPEND declarations
           "extern const lockstep::KernelEntry lockstep_kernels_${shard}[];\n")
    string(APPEND entries "lockstep_kernels_${shard}, ")
  endforeach()
  string(MD5 key "${entries}")
  set(table "${CMAKE_CURRENT_BINARY_DIR}/gen/tables-${key}.cpp")
  file(
    CONFIGURE
    OUTPUT
    "${table}"
    CONTENT
      "#include \"lockstep.h\"\n${declarations}extern const lockstep::KernelEntry* const quire_metal_host_tables[];\nconst lockstep::KernelEntry* const quire_metal_host_tables[] = {${entries}nullptr};\n"
  )
  foreach(source "${table}"
                 "${PROJECT_SOURCE_DIR}/tests/metal_host/lockstep.cpp")
    get_filename_component(name "${source}" NAME_WE)
    quire_metal_host_compile(
      object "${dir}/${name}.o" "${source}" -std=c++20 -Wall
      "-I${PROJECT_SOURCE_DIR}/tests/metal_host" -fPIC -g1 ${RUNTIME})
    list(APPEND objects "${object}")
  endforeach()
  set(${out}
      ${objects}
      PARENT_SCOPE)
endfunction()

# quire_metal_host_program(NAME FLAVOUR OBJECTS SOURCES...): a program of
# harness sources and the objects in the list that the variable OBJECTS names.
function(quire_metal_host_program name flavour objects_variable)
  quire_metal_host_flavour(${flavour})
  # MSan's harness is traced's: both are compiled without a sanitizer.
  string(REPLACE "msan" "traced" dir "${flavour}")
  set(dir "${CMAKE_CURRENT_BINARY_DIR}/${dir}")
  set(all ${${objects_variable}})
  foreach(source IN LISTS ARGN)
    get_filename_component(stem "${source}" NAME_WE)
    quire_metal_host_compile(
      object
      "${dir}/harness_${stem}.o"
      "${source}"
      -std=c++20
      -Wall
      -Werror
      -march=native
      "-DQUIRE_METAL_HOST_FULL=$<BOOL:${QUIRE_METAL_HOST_FULL}>"
      "-I${PROJECT_SOURCE_DIR}/src"
      "-I${PROJECT_SOURCE_DIR}/include"
      "-I${PROJECT_SOURCE_DIR}/tests"
      "-I${PROJECT_SOURCE_DIR}/tests/metal_host"
      -g1
      ${HARNESS})
    list(APPEND all "${object}")
  endforeach()
  list(REMOVE_DUPLICATES all)
  set(program "${PROJECT_BINARY_DIR}/bin/metal_host_${name}")
  add_custom_command(
    OUTPUT "${program}"
    COMMAND "${QUIRE_CLANG}" ${LINK} ${HARNESS} ${all} -o "${program}"
    DEPENDS ${all}
    COMMENT "Linking ${name} by clang"
    COMMAND_EXPAND_LISTS)
  add_custom_target(metal_host_${name} ALL DEPENDS "${program}")
endfunction()
