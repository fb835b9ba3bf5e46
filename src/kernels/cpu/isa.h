// Instruction sets of the CPU kernels: which exist, which one runs.
#pragma once

#include <string_view>
#include <vector>

namespace quire::cpu {

/** A variant of the kernels; each lives in a translation unit of its own. */
enum class Isa {
  Portable,    // plain C++ for the compiler's baseline
  Neon,        // AArch64
  Avx2,        // AVX2, FMA, F16C
  Avx512,      // AVX-512 F, BW, DQ, VL
  Avx512Bf16,  // and its BF16 dot products
};

/** As in QUIRE_CPU_ISA, and "avx512_bf16" for AVX-512 with BF16. */
std::string_view isa_name(Isa isa);

/** What this build has and this CPU can run, the slowest first. */
const std::vector<Isa>& available_isas();

/**
 * The instruction set that paged_decode() uses: QUIRE_CPU_ISA's if it is set
 * (avx512 takes the BF16 dot products where the CPU has them), else the best.
 * Throws std::invalid_argument if QUIRE_CPU_ISA asks for what is missing.
 */
Isa selected_isa();

/** selected_isa() for a given value of QUIRE_CPU_ISA; "" is the best. */
Isa select_isa(std::string_view requested);

}  // namespace quire::cpu
