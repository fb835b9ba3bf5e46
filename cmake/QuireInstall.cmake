# Install rules: the library, the public headers as they are, the package
# config, and the quire program where it is built. Static internals are folded
# into the library (quire_fold), so MLX is the only dependency of a consumer.
if(NOT TARGET quire)
  return()
endif()
include(CMakePackageConfigHelpers)

set(quire_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/quire")

# The installed library finds MLX where this build found it. Packagers who put
# both into system folders set CMAKE_SKIP_INSTALL_RPATH.
set_target_properties(
  quire
  PROPERTIES VERSION ${PROJECT_VERSION}
             SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR}
             INSTALL_RPATH_USE_LINK_PATH ON)
install(
  TARGETS quire
  EXPORT quireTargets
  INCLUDES
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/quire"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
if(TARGET quire_cli)
  set_target_properties(
    quire_cli PROPERTIES INSTALL_RPATH "$ORIGIN/../${CMAKE_INSTALL_LIBDIR}"
                         INSTALL_RPATH_USE_LINK_PATH ON)
  install(TARGETS quire_cli)
endif()

install(
  EXPORT quireTargets
  NAMESPACE quire::
  DESTINATION "${quire_cmake_dir}")
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/quireConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/quireConfig.cmake"
  INSTALL_DESTINATION "${quire_cmake_dir}")
# Before 1.0 a minor version may break the interface.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/quireConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/quireConfig.cmake"
              "${PROJECT_BINARY_DIR}/quireConfigVersion.cmake"
        DESTINATION "${quire_cmake_dir}")
install(
  FILES "${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_SOURCE_DIR}/NOTICE"
        "${PROJECT_SOURCE_DIR}/README.md"
  DESTINATION "${CMAKE_INSTALL_DOCDIR}")
