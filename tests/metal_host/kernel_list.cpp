// Prints the text of a set of kernels: the shipped source and instantiations.
//   kernel_list decode REGEX    default variants whose name matches
//   kernel_list variants        every variant of the main shapes but the
//   default kernel_list write           kv_append and copy_blocks
#include <algorithm>
#include <exception>
#include <iostream>
#include <regex>
#include <string>

#include "kernels/metal/launch.h"
#include "kernels/metal/source.h"

namespace {

using namespace quire;
using namespace quire::metal;

void print(
    const std::vector<KernelLaunch>& kernels,
    Source source,
    const std::string& regex = "") {
  const std::regex wanted(regex);
  for (const KernelLaunch& kernel : kernels) {
    if (kernel.source == source &&
        std::regex_search(kernel.kernel_name, wanted)) {
      std::cout << kernel.instantiation;
    }
  }
}

int run(int argc, char** argv) {
  const std::string set = argc > 1 ? argv[1] : "";
  const std::string regex = argc > 2 ? argv[2] : "";
  if (set == "decode") {
    std::cout << paged_decode_source();
    print(all_kernels(), Source::PagedDecode, regex);
  } else if (set == "variants") {
    std::cout << paged_decode_source();
    for (const int head_dim : {64, 128}) {
      auto kernels = variant_kernels(DType::Float16, DType::Float16, head_dim);
      const auto defaults = all_kernels();
      std::erase_if(kernels, [&](const KernelLaunch& kernel) {
        return std::find(defaults.begin(), defaults.end(), kernel) !=
               defaults.end();
      });
      print(kernels, Source::PagedDecode);
    }
  } else if (set == "write") {
    std::cout << cache_write_source();
    print(all_kernels(), Source::CacheWrite);
  } else {
    std::cerr << "usage: kernel_list decode REGEX | variants | write\n";
    return 2;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "kernel_list: " << error.what() << '\n';
    return 1;
  }
}
