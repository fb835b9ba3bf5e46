#include "mlx/gate.h"

#include <doctest/doctest.h>

#include <stdexcept>
#include <string>

namespace quire {
namespace {

TEST_CASE("gate: every wish, environment and support") {
  using N = NativeKernel;
  using E = NativeKernelEnv;
  const std::string kOff = "QUIRE_NATIVE_PAGED_KERNEL=off";
  const std::string kWhy = "head_dim must be 64";
  const std::string kThrows = "throws";
  struct Row {
    N wanted;
    E env;
    bool supported;
    bool fused;
    std::string reason;
  };
  const Row kRows[] = {
      {N::Auto, E::Auto, true, true, ""},
      {N::Auto, E::Auto, false, false, kWhy},
      {N::Auto, E::On, true, true, ""},
      {N::Auto, E::On, false, false, kThrows},
      {N::Auto, E::Off, true, false, kOff},
      {N::Auto, E::Off, false, false, kOff},
      {N::On, E::Auto, true, true, ""},
      {N::On, E::Auto, false, false, kThrows},
      {N::On, E::On, true, true, ""},
      {N::On, E::On, false, false, kThrows},
      {N::On, E::Off, true, false, kOff},
      {N::On, E::Off, false, false, kOff},
      {N::Off, E::Auto, true, false, ""},
      {N::Off, E::Auto, false, false, ""},
      {N::Off, E::On, true, false, ""},
      {N::Off, E::On, false, false, ""},
      {N::Off, E::Off, true, false, ""},
      {N::Off, E::Off, false, false, ""},
  };
  for (const Row& row : kRows) {
    CAPTURE(static_cast<int>(row.wanted));
    CAPTURE(static_cast<int>(row.env));
    CAPTURE(row.supported);
    const KernelSupport support{row.supported, row.supported ? "" : kWhy};
    if (row.reason == kThrows) {
      CHECK_THROWS_WITH_AS(
          choose_path(row.wanted, row.env, support),
          doctest::Contains("head_dim must be 64."),
          std::invalid_argument);
      continue;
    }
    const PathChoice choice = choose_path(row.wanted, row.env, support);
    CHECK(choice.fused == row.fused);
    CHECK(choice.fallback_reason == row.reason);
  }
}

TEST_CASE("gate: the error names who insisted") {
  const KernelSupport none{false, "no"};
  CHECK_THROWS_WITH(
      choose_path(NativeKernel::On, NativeKernelEnv::Auto, none),
      "[paged_attention] use_native_paged_kernel = On needs a fused kernel "
      "for this case; got none: no.");
  CHECK_THROWS_WITH(
      choose_path(NativeKernel::Auto, NativeKernelEnv::On, none),
      "[paged_attention] QUIRE_NATIVE_PAGED_KERNEL=on needs a fused kernel "
      "for this case; got none: no.");
}

}  // namespace
}  // namespace quire
