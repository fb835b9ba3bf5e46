#include "kernels/cpu/isa.h"

#include <string>

#if defined(QUIRE_CPU_X86)
#include <cpuid.h>
#endif

#include "common/env.h"
#include "common/error.h"

namespace quire::cpu {
namespace {

#if defined(QUIRE_CPU_X86)
// By hand, since clang 14's builtin does not know the name "f16c".
bool supports_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

std::vector<Isa> find_isas() {
  std::vector<Isa> isas = {Isa::Portable};
#if defined(QUIRE_CPU_X86)
  // These builtins also ask whether the system saves the wide registers.
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      supports_f16c()) {
    isas.push_back(Isa::Avx2);
  }
  if (isas.back() == Isa::Avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    isas.push_back(Isa::Avx512);
    if (__builtin_cpu_supports("avx512bf16")) {
      isas.push_back(Isa::Avx512Bf16);
    }
  }
#elif defined(QUIRE_CPU_NEON)
  isas.push_back(Isa::Neon);
#endif
  return isas;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  switch (isa) {
    case Isa::Portable:
      return "portable";
    case Isa::Neon:
      return "neon";
    case Isa::Avx2:
      return "avx2";
    case Isa::Avx512:
      return "avx512";
    case Isa::Avx512Bf16:
      return "avx512_bf16";
  }
  return "?";
}

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = find_isas();
  return isas;
}

Isa select_isa(std::string_view requested) {
  const std::vector<Isa>& isas = available_isas();
  if (requested.empty()) {
    return isas.back();
  }
  if (requested == "avx512" && isas.back() == Isa::Avx512Bf16) {
    return Isa::Avx512Bf16;
  }
  std::string names;
  for (const Isa isa : isas) {
    if (isa_name(isa) == requested) {
      return isa;
    }
    names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  require(
      false,
      "cpu",
      "QUIRE_CPU_ISA must name an instruction set of this CPU and build (",
      names,
      "); got ",
      requested,
      ".");
  return Isa::Portable;
}

Isa selected_isa() {
  static const Isa isa = select_isa(env().cpu_isa);
  return isa;
}

}  // namespace quire::cpu
