#include <algorithm>
#include <iterator>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/paged_decode.h"
#include "tools/bench/device.h"
#include "tools/bench/memory.h"
#include "tools/bench/read_roof.h"

namespace quire::bench {
namespace {

class CpuDevice final : public Device {
 public:
  std::string fused_path() const override {
    return "fused_cpu";
  }
  testing::Rounding rounding() const override {
    return {};
  }
  std::int64_t cache_bytes() const override {
    return last_level_cache_bytes();
  }
  std::int64_t available_bytes() const override {
    return available_memory_bytes();
  }
  std::string why_not_fused(const Shape& shape) const override {
    const cpu::Support support = cpu::supports_paged_decode(
        decode_params(shape, 1), shape.q_dtype, shape.kv_dtype);
    return support.ok ? "" : support.reason;
  }

  Path make_kernel_path(const CacheData& data) override {
    return bench::make_kernel_path(data, cpu::paged_decode);
  }
  std::vector<Read> make_reads(std::int64_t size_bytes, std::int64_t num_bytes)
      override {
    if (roof_size_ != size_bytes) {
      roof_.reset();  // before the next one takes as much
      roof_ = std::make_shared<ReadRoof>(size_bytes);
      roof_size_ = size_bytes;
    }
    std::vector<Read> reads;
    for (const cpu::ReadLoop loop : cpu::kReadLoops) {
      reads.push_back({.run = [roof = roof_, loop, num_bytes] {
        roof->read(loop, num_bytes);
      }});
    }
    return reads;
  }
  double multiply_add_rate() override {
    return cpu::measure_multiply_add_rate(
        cpu::default_engine(), cpu::selected_isa());
  }

 private:
  std::shared_ptr<ReadRoof> roof_;
  std::int64_t roof_size_ = -1;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device() {
  return std::make_unique<CpuDevice>();
}

std::int64_t rotation_bytes(const Device& device) {
  return std::min(2 * device.cache_bytes(), device.available_bytes() / 6);
}

}  // namespace quire::bench
