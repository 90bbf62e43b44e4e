// Runs the table of ops, and checks that it is complete.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "jit/cuda_text.h"
#include "jit/driver.h"
#include "ops/ops.h"
#include "tests/op_cases.h"

namespace weft {
namespace {

class Ops : public testing::TestWithParam<int> {
 protected:
  // check(fn, row), with the same draws in every run, so that all of them see one function.
  template <class F>
  void with_row(F check) const {
    const OpRow& row = op_rows()[std::size_t(GetParam())];
    Rng frozen(3);
    const UseRng use(frozen);
    const OpFunction fn = [&](const std::vector<Tensor>& in) {
      frozen.set(3, 5);
      return row.fn(in);
    };
    try {
      check(fn, row);
    } catch (const Error& e) {
      FAIL() << e.what();
    }
  }
};
using SlowDevices = Ops;

TEST_P(Ops, ValueGradientDeterminism) {
  with_row([](const OpFunction& fn, const OpRow& row) { check_op(fn, row.reference, row.cases, row.options); });
}

// On a machine with a GPU: what the emulated device computes is what the real one does.
TEST_P(SlowDevices, EmuAndCudaAgree) {
  if (const auto missing = missing_cuda_device()) GTEST_SKIP() << *missing;
  with_row(
      [](const OpFunction& fn, const OpRow& row) { check_devices(fn, row.cases, row.options, Device::emu, Device::cuda); });
}

const auto kEveryRow = testing::Range(0, int(op_rows().size()));
std::string row_name(const testing::TestParamInfo<int>& p) { return op_rows()[std::size_t(p.param)].name; }
INSTANTIATE_TEST_SUITE_P(Table, Ops, kEveryRow, row_name);
INSTANTIATE_TEST_SUITE_P(Table, SlowDevices, kEveryRow, row_name);

// A GPU of compute capability 8.0 runs every op. A text with later instructions stands here, with the text that does the same
// there.
TEST(OpTable, TextsForNewerDevicesHaveATwin) {
  const std::map<std::string_view, std::string_view> twins = {{"ops/attention_wgmma.cuh", "ops/attention_tensor.cuh"}};
  for (const EmbeddedText& e : embedded_texts())
    for (const char* newer : {"wgmma.fence", "cp.async.bulk", "mbarrier.try_wait", "setmaxnreg", "tcgen05", "barrier.cluster"})
      if (e.text.find(newer) != std::string_view::npos) {
        ASSERT_TRUE(twins.count(e.file)) << e.file << " has " << newer << ", which 8.0 lacks, and no twin";
        EXPECT_FALSE(embedded_text(twins.at(e.file)).empty());
      }
}

TEST(OpTable, EveryOpHasARow) {
  std::set<std::string> seen;
  for (const OpRow& row : op_rows()) {
    std::vector<Tensor> in;
    for (const OpInput& i : row.cases[0].inputs) {
      std::vector<double> v = irregular(i.shape.numel(), i.low, i.high, 1);
      if (is_integer(i.integer))
        in.push_back(Tensor::from(std::vector<std::int64_t>(v.begin(), v.end()), i.shape));
      else
        in.push_back(Tensor::from(v, i.shape));
    }
    std::vector<Arg> reals;
    for (const Tensor& t : in)
      if (is_real(t.dtype())) reals.emplace_back(t);
    run([&] {
      const Tensor y = row.fn(in);
      if (is_real(y.dtype())) grad(y, ones(y.shape(), y.dtype()), reals, Unused::zeros);
      for (NodeId id = 0; id < tape().nodes.size(); ++id) seen.insert(std::string(tape().op(id).name));
    });
  }
  // Tested elsewhere: states in test_tape, the optimizer in test_optim, what a benchmark does with results in test_bench, what
  // ranks do together in test_ranks, ssd in bf16 on a GPU in test_ssd_cuda.
  for (const char* other : {"state", "assign", "assign_at", "adamw", "global_norm", "keep", "all_reduce", "broadcast",
                            "all_gather", "reduce_scatter", "adamw_sharded", "sharded_squares", "norm_of_squares",
                            "place_weights", "ssd_chunks", "ssd_chunks_backward"})
    seen.insert(other);
  // The loops of ssd are recorded for the CPU alone; a GPU has it made of other ops.
  if (device() != Device::cpu) seen.insert({"ssd", "ssd_backward"});
  // A packed scan is made of these where its kernels do not know documents: in fp32 on a GPU.
  if (device() == Device::cpu) seen.insert({"scan_delta", "scan_out"});
  for (const Op* op : registered_ops()) {
    if (op->name.starts_with("test_")) continue;  // of another test
    EXPECT_TRUE(seen.count(std::string(op->name))) << op->name << " has no row in tests/op_cases/";
  }
}

}  // namespace
}  // namespace weft
