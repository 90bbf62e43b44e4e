// What a process holds of a GPU's memory is counted as the driver counts it.
#include <gtest/gtest.h>

#include "jit/gpu.h"

namespace weft {
namespace {

class GpuMemory : public testing::TestWithParam<Device> {};

TEST_P(GpuMemory, IsCountedAsTheDriverCountsIt) {
  if (GetParam() == Device::cuda)
    if (const auto missing = missing_cuda_device()) GTEST_SKIP() << *missing;
  Gpu& gpu = Gpu::of(GetParam());
  const std::size_t held = gpu.held_memory(), in_use = gpu.memory_in_use(), used = gpu.used_memory();
  const auto expect = [&](std::size_t more) {
    EXPECT_EQ(gpu.held_memory() - held, more);
    // A driver rounds up to pages.
    EXPECT_NEAR(double(gpu.memory_in_use()) - double(in_use), double(more), gpu.emulated() ? 0 : 4e6);
    EXPECT_GE(gpu.peak_memory(), gpu.held_memory());
  };
  const std::size_t block = 41 << 20, page = gpu.granularity();  // of a size that nothing else has
  std::byte* memory = gpu.allocate(block, "test");
  expect(block);
  EXPECT_EQ(gpu.used_memory() - used, block);
  std::byte* base = gpu.reserve(8 * page);
  expect(block);
  gpu.extend(base, 0, 3 * page, "test");
  gpu.extend(base, 3 * page, 4 * page, "test");
  expect(block + 4 * page);
  const std::size_t peak = gpu.peak_memory();
  gpu.free(memory);
  expect(split_memory() ? 4 * page : block + 4 * page);
  EXPECT_EQ(gpu.peak_memory(), peak);
  EXPECT_EQ(gpu.used_memory(), used);
  EXPECT_EQ(gpu.bus_id().empty(), gpu.emulated());
  gpu.free(gpu.allocate(block, "test"));  // the same again
  EXPECT_EQ(gpu.peak_memory(), peak);
}

INSTANTIATE_TEST_SUITE_P(Devices, GpuMemory, testing::Values(Device::cuda, Device::emu),
                         [](const auto& test) { return std::string(name_of(test.param)); });

}  // namespace
}  // namespace weft
