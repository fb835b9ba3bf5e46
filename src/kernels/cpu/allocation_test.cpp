// Counts what the program allocates: a call in steady state allocates nothing.
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "kernels/cpu/decode_engine.h"
#include "kernels/cpu/decode_test_inputs.h"

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

namespace {
std::atomic<int> num_allocations{0};
}  // namespace

void* operator new(std::size_t size) {
  ++num_allocations;
  void* memory = std::malloc(size);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void* operator new(std::size_t size, std::align_val_t alignment) {
  ++num_allocations;
  const auto align = static_cast<std::size_t>(alignment);
  void* memory = std::aligned_alloc(align, (size + align - 1) / align * align);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return memory;
}
void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}

namespace quire {
namespace {

TEST_CASE("A call in steady state allocates nothing") {
  test::DecodeCase c;
  c.kv_dtype = DType::Float16;
  c.seq_lens = {1000, 3, 0, 700};
  test::DecodeInputs inputs(c, 0.0f);
  c.seq_lens = {40};
  test::DecodeInputs shorter(c, 0.0f);
  cpu::DecodeEngine engine(2);
  const cpu::Isa isa = cpu::selected_isa();
  const DecodeArgs shares = inputs.args(0);
  const DecodeArgs small = shorter.args(0);
  DecodeArgs splits = shares;
  splits.params.num_splits = 5;
  const auto decode_all = [&] {
    engine.paged_decode(shares, isa);
    engine.paged_decode(splits, isa);
    engine.paged_decode(small, isa);
  };
  decode_all();
  const int before = num_allocations;
  CHECK(before > 0);  // the counter counts
  decode_all();
  decode_all();
  CHECK(num_allocations == before);
}

}  // namespace
}  // namespace quire

#endif
