# quire_target(TARGET): the settings that every target of ours shares.
# -Wrestrict misfires on std::string's operator+ in GCC 12 (its bug 105651);
# clang's -Wconversion means signs too, GCC's does not; and clang finds libstdc++'s
# own std::bind deprecated where a header of MLX uses it.
function(quire_target target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  set_target_properties(
    ${target}
    PROPERTIES CXX_EXTENSIONS OFF
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               POSITION_INDEPENDENT_CODE ON)
  target_compile_options(
    ${target}
    PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wall
            -Wextra
            -Wpedantic
            -Wshadow
            -Wconversion>
            $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>
            $<$<COMPILE_LANG_AND_ID:CXX,Clang,AppleClang>:-Wno-sign-conversion
            -Wno-deprecated-declarations>
            $<$<AND:$<BOOL:${QUIRE_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
  if(QUIRE_SANITIZE)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # False in GCC 12's own <regex> once a sanitizer instruments it.
      target_compile_options(
        ${target}
        PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized>)
    endif()
    # gcc says by a macro that it sanitizes, clang 19 does not yet.
    if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
      if(QUIRE_SANITIZE MATCHES "address")
        target_compile_definitions(${target} PRIVATE __SANITIZE_ADDRESS__=1)
      elseif(QUIRE_SANITIZE MATCHES "thread")
        target_compile_definitions(${target} PRIVATE __SANITIZE_THREAD__=1)
      endif()
    endif()
    target_compile_options(
      ${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${QUIRE_SANITIZE}
                        -fno-sanitize-recover=all -fno-omit-frame-pointer>)
    target_link_options(${target} PUBLIC -fsanitize=${QUIRE_SANITIZE})
  endif()
endfunction()

# quire_fold(TARGET INTERNALS...): puts the objects of static internal libraries
# into TARGET instead of linking them, so that TARGET can be installed alone. A
# static library would otherwise name them as dependencies of its users.
function(quire_fold target)
  foreach(internal IN LISTS ARGN)
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${internal}>)
    target_include_directories(
      ${target}
      PRIVATE $<TARGET_PROPERTY:${internal},INTERFACE_INCLUDE_DIRECTORIES>)
  endforeach()
endfunction()

# quire_test(NAME LABEL SOURCES... [COST N] [LINK TARGETS...]): one doctest
# program, one ctest entry a test case. Tests of the highest cost start first,
# so that no long one is left alone at the end; N is about the seconds that the
# program's longest case takes.
function(quire_test name label)
  cmake_parse_arguments(arg "" "COST" "LINK" ${ARGN})
  if(NOT arg_COST)
    set(arg_COST 0)
  endif()
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  quire_target(${name})
  target_link_libraries(${name} PRIVATE ${arg_LINK} doctest::doctest
                                        quire_test_main)
  if(QUIRE_WITH_CUDA)
    # Discovery runs the program, and MLX's CUDA library loads only where there
    # is a driver, which a machine that builds need not have.
    add_test(NAME "${label}/${name}" COMMAND ${name})
    set_tests_properties("${label}/${name}" PROPERTIES LABELS "${label}")
    return()
  endif()
  doctest_discover_tests(
    ${name}
    TEST_PREFIX
    "${label}/"
    PROPERTIES
    LABELS
    "${label}"
    COST
    ${arg_COST}
    ADD_LABELS
    0)
endfunction()
