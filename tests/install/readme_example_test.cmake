# The example of the README is the program that the install tests compile.
file(READ "${SOURCE_DIR}/README.md" readme)
file(READ "${SOURCE_DIR}/tests/install/consumer/example.cpp" example)
string(FIND "${readme}" "```cpp\n${example}```" position)
if(position EQUAL -1)
  message(FATAL_ERROR "README.md does not show tests/install/consumer/"
                      "example.cpp as it is; copy it there again.")
endif()
