// The shipped Metal kernels on NVIDIA lanes: the table of cases that every
// backend must get right, as far as its kernels are compiled in.
#include <doctest/doctest.h>

#include <cuda_runtime_api.h>

#include <string>

#include "nv_launch.h"
#include "support/conformance.h"

using namespace quire;
using quire::testing::Backend;
using quire::testing::Cost;
using quire::testing::DecodeCase;

namespace {

// Few, so that splits are made even of short sequences by force only.
constexpr int kCores = 40;

metal::DecodeLaunch launch_of(const DecodeArgs& args) {
  const DecodeParams& p = args.params;
  return metal_nv::make_launch(
      args,
      metal::default_variant(
          args.q_dtype,
          args.kv_dtype,
          p.head_dim,
          p.num_q_heads / p.num_kv_heads),
      kCores);
}

}  // namespace

TEST_CASE("the conformance table") {
  int num_devices = 0;
  if (cudaGetDeviceCount(&num_devices) != cudaSuccess || num_devices == 0) {
    MESSAGE("SKIPPED: there is no NVIDIA GPU");
    return;
  }
  const Backend backend{
      .name = "metal_nv",
      .rounding = {},
      .skip = [](const DecodeCase&) { return ""; },
      .run =
          [](const DecodeArgs& args) {
            metal_nv::paged_decode(args, launch_of(args));
          }};
  int num_run = 0;
  for (const DecodeCase& c : testing::decode_cases()) {
    if (c.cost == Cost::Quick &&
        metal_nv::is_compiled_in(launch_of(testing::CaseData(c).args()))) {
      CAPTURE(c.name);
      CHECK(testing::check_case(c, {&backend, 1}) == "");
      ++num_run;
    }
  }
  MESSAGE(num_run << " cases");
  CHECK(num_run > 100);
}
