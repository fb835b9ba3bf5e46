# Enables CUDA where QUIRE_WITH_CUDA asks for it and nvcc is there; without nvcc
# the build goes on without the CUDA kernels and says so.
if(NOT QUIRE_WITH_CUDA)
  return()
endif()
include(CheckLanguage)
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # A100, RTX 30 and 40, H100 and H200; newer ones compile the last at
  # start, which 12.x has too little shared memory for.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 86-real 90)
endif()
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  message(
    WARNING
      "SKIPPED: the CUDA kernels, because there is no CUDA compiler. Put nvcc"
      " (CUDA 12.4 or newer) on the PATH, or name it in CUDACXX, and configure"
      " again.")
  set(QUIRE_WITH_CUDA OFF)
  return()
endif()
enable_language(CUDA)
