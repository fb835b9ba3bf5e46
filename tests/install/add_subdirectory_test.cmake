include("${CMAKE_CURRENT_LIST_DIR}/common.cmake")

# The build folder stays: its objects need compiling once only. A debug build is
# the other kind of build, and the quicker to compile.
file(REMOVE_RECURSE "${WORK_DIR}/prefix" "${WORK_DIR}/consumer")
run(${CMAKE_COMMAND} ${toolchain} -S ${SOURCE_DIR}/tests/install/parent -B
    ${WORK_DIR}/parent -DCMAKE_BUILD_TYPE=Debug -DQUIRE_SOURCE_DIR=${SOURCE_DIR}
    -DBUILD_SHARED_LIBS=${OTHER_SHARED})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/parent)
run(${CMAKE_CTEST_COMMAND} --test-dir ${WORK_DIR}/parent)
if(NOT output MATCHES "1/1 Test")
  message(FATAL_ERROR "The parent's tests are not the parent's alone:\n${output}")
endif()
run(${CMAKE_COMMAND} --install ${WORK_DIR}/parent --prefix ${WORK_DIR}/prefix)
use_installed(${WORK_DIR}/prefix)
