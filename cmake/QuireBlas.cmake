# quire_blas: what an executable links to compute with a fast BLAS.
#
# MLX's Linux wheel carries the unoptimised reference BLAS. An executable that
# has OpenBLAS before libmlx among its libraries interposes MLX's cblas calls
# with it; on SmolLM2-135M that makes prefill 60 times faster. So link
# quire_blas first, and only into programs: a library must not choose the BLAS
# of its users. On macOS MLX uses Accelerate and the target is empty.
add_library(quire_blas INTERFACE)
if(NOT CMAKE_SYSTEM_NAME STREQUAL "Darwin")
  find_library(
    QUIRE_OPENBLAS_LIBRARY
    NAMES openblas
    PATH_SUFFIXES openblas-pthread)
  if(QUIRE_OPENBLAS_LIBRARY)
    target_link_libraries(
      quire_blas INTERFACE -Wl,--push-state,--no-as-needed
                           ${QUIRE_OPENBLAS_LIBRARY} -Wl,--pop-state)
  else()
    message(
      WARNING "OpenBLAS was not found (Debian: libopenblas-dev). Programs are"
              " built without it and compute tens of times slower.")
  endif()
endif()
