# Finds MLX, or fetches the pinned wheel of the platform when MLX_ROOT is unset.
include(QuireFetchWheel)

set(QUIRE_MLX_VERSION 0.32.4)

if(NOT MLX_ROOT)
  if(CMAKE_SYSTEM_NAME STREQUAL "Darwin")
    quire_fetch_wheel(
      mlx_wheel mlx-metal ${QUIRE_MLX_VERSION}
      8019b2db622599267d66cc168b2f0dbf5af929790a6c3b3913e00eabc42a7947
      macosx_14_0_arm64)
  elseif(QUIRE_WITH_CUDA)
    quire_fetch_wheel(
      mlx_wheel mlx-cuda-13 ${QUIRE_MLX_VERSION}
      94cb48fba73e5ee39467e51c35c51c691123359ca17bafd1a24cf92ad6732bee)
  else()
    quire_fetch_wheel(
      mlx_wheel mlx-cpu ${QUIRE_MLX_VERSION}
      0e0a24fa2ce8b6b94d2e6a90604e8813aa8e29fcb918bb2aa01cfb6d133d8cee)
  endif()
  set(MLX_ROOT "${mlx_wheel}/mlx")
endif()

# MLX's own package asks for cuDNN and NCCL on CUDA, which only its library
# needs, at run time; so the target is made here.
if(QUIRE_WITH_CUDA)
  add_library(mlx SHARED IMPORTED GLOBAL)
  set_target_properties(mlx PROPERTIES IMPORTED_LOCATION
                                       "${MLX_ROOT}/lib/libmlx.so")
  target_include_directories(mlx INTERFACE "${MLX_ROOT}/include")
  target_compile_features(mlx INTERFACE cxx_std_20)
  target_link_options(mlx INTERFACE -Wl,--allow-shlib-undefined)
  find_package(CUDAToolkit REQUIRED)
  target_link_libraries(mlx INTERFACE CUDA::toolkit)
  return()
endif()

# GLOBAL: a parent project that links quire needs the imported target too.
find_package(MLX CONFIG REQUIRED GLOBAL PATHS "${MLX_ROOT}/share/cmake/MLX"
             NO_DEFAULT_PATH)
if(CMAKE_CROSSCOMPILING AND CMAKE_SYSTEM_NAME STREQUAL "Darwin")
  # There are no frameworks to link; the dynamic linker finds them on a Mac.
  set_target_properties(mlx PROPERTIES INTERFACE_LINK_LIBRARIES "")
endif()
