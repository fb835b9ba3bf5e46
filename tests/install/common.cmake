# run(COMMAND...): runs it, shows its output when it fails.
function(run)
  execute_process(
    COMMAND ${ARGV}
    RESULT_VARIABLE status
    OUTPUT_VARIABLE output
    ERROR_VARIABLE output)
  if(NOT status EQUAL 0)
    string(REPLACE ";" " " command "${ARGV}")
    message(FATAL_ERROR "${command}\nfailed with ${status}:\n${output}")
  endif()
  set(output
      "${output}"
      PARENT_SCOPE)
endfunction()

set(toolchain -G ${GENERATOR} -DCMAKE_CXX_COMPILER=${CXX}
              -DCMAKE_BUILD_TYPE=${BUILD_TYPE} -DMLX_ROOT=${MLX_ROOT})

# use_installed(PREFIX): what a user's project sees of an installed Quire.
function(use_installed prefix)
  # Nothing of the source or build tree, and no dependency but MLX.
  file(GLOB_RECURSE configs "${prefix}/*.cmake")
  foreach(config IN LISTS configs)
    file(READ "${config}" text)
    foreach(leak "${SOURCE_DIR}/src" "${SOURCE_DIR}/include" "${BUILD_DIR}/src"
                 quire_core quire_kernels quire_common doctest OpenBLAS pcre2)
      if(text MATCHES "${leak}")
        message(FATAL_ERROR "${config} names ${leak}")
      endif()
    endforeach()
    string(REGEX MATCHALL "find_dependency\\([A-Za-z]+" dependencies "${text}")
    list(FILTER dependencies EXCLUDE REGEX "\\(MLX$")
    if(dependencies)
      message(FATAL_ERROR "${config} finds ${dependencies}")
    endif()
  endforeach()

  run(${CMAKE_COMMAND} ${toolchain} -S ${SOURCE_DIR}/tests/install/consumer -B
      ${WORK_DIR}/consumer -DCMAKE_PREFIX_PATH=${prefix})
  run(${CMAKE_COMMAND} --build ${WORK_DIR}/consumer)
  run(${WORK_DIR}/consumer/example)
  message(STATUS "${output}")
  if(NOT output MATCHES "fused_cpu 100")
    message(FATAL_ERROR "The example's steps did not take the fused path.")
  endif()
endfunction()
