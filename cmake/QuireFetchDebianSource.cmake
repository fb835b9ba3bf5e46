# quire_fetch_debian_source(OUT_DIR PACKAGE TARBALL SHA256)
#
# Downloads the upstream tarball of a Debian source package by apt into
# build/deps/sources, checks its sha256 and unpacks it to build/deps/STEM; sets
# OUT_DIR to that folder, without the tarball's own top folder. PACKAGE is one
# of the binary packages built from it: in a Debian archive both lie in the same
# folder, so that apt, which need know of no source packages, tells where.
# What is there already is not downloaded or unpacked again.
include("${CMAKE_CURRENT_LIST_DIR}/QuireCheckSha256.cmake")

function(quire_fetch_debian_source out_dir package tarball sha256)
  set(deps "${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../build/deps")
  get_filename_component(deps "${deps}" ABSOLUTE)
  string(REGEX REPLACE "\\.orig\\.tar.*" "" stem "${tarball}")
  set(root "${deps}/${stem}")
  set(stamp "${root}/.sha256-${sha256}")
  set(${out_dir}
      "${root}"
      PARENT_SCOPE)
  file(LOCK "${deps}/.lock" GUARD FUNCTION)
  if(EXISTS "${stamp}")
    return()
  endif()

  set(file "${deps}/sources/${tarball}")
  if(NOT EXISTS "${file}")
    message(STATUS "Downloading ${tarball}")
    file(MAKE_DIRECTORY "${deps}/sources")
    execute_process(
      COMMAND apt-get download --print-uris "${package}"
      OUTPUT_VARIABLE uri
      ERROR_VARIABLE error)
    set(status "${package} is unknown to apt")
    if(uri MATCHES "^'([^']+)/[^/']+'")
      execute_process(
        COMMAND /usr/lib/apt/apt-helper download-file
                "${CMAKE_MATCH_1}/${tarball}" "${file}" "SHA256:${sha256}"
        RESULT_VARIABLE status
        OUTPUT_QUIET
        ERROR_VARIABLE error)
    endif()
    if(NOT status EQUAL 0)
      message(
        FATAL_ERROR
          "Could not download ${tarball} (${status}):\n${error}\n"
          "On Debian 12 check the network, run apt-get update and the same"
          " command again; elsewhere put the file into ${deps}/sources.")
    endif()
  endif()

  quire_check_sha256("${file}" "${sha256}")
  file(REMOVE_RECURSE "${root}" "${root}.part")
  file(ARCHIVE_EXTRACT INPUT "${file}" DESTINATION "${root}.part")
  file(GLOB top "${root}.part/*")
  file(RENAME "${top}" "${root}")
  file(REMOVE_RECURSE "${root}.part")
  file(TOUCH "${stamp}")
endfunction()
