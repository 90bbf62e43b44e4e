// Runs the table of ops, and checks that it is complete.
#include <gtest/gtest.h>

#include <set>

#include "autograd/backward.h"
#include "autograd/op.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "ops/ops.h"
#include "tests/op_cases.h"

namespace weft {
namespace {

class Ops : public testing::TestWithParam<int> {};

TEST_P(Ops, ValueGradientDeterminism) {
  const OpRow& row = op_rows()[std::size_t(GetParam())];
  Rng frozen(3);  // the same draws in every run, so that finite differences see one function
  const UseRng use(frozen);
  auto fn = [&](const std::vector<Tensor>& in) {
    frozen.set(3, 0);
    return row.fn(in);
  };
  try {
    check_op(fn, row.reference, row.cases, row.options);
  } catch (const Error& e) {
    FAIL() << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Table, Ops, testing::Range(0, int(op_rows().size())),
                         [](const auto& p) { return op_rows()[std::size_t(p.param)].name; });

TEST(OpTable, EveryOpHasARow) {
  std::set<std::string> seen;
  for (const OpRow& row : op_rows()) {
    std::vector<Tensor> in;
    for (const OpInput& i : row.cases[0].inputs) {
      std::vector<double> v = irregular(i.shape.numel(), i.low, i.high, 1);
      if (is_integer(i.integer)) in.push_back(Tensor::from(std::vector<std::int64_t>(v.begin(), v.end()), i.shape));
      else in.push_back(Tensor::from(v, i.shape));
    }
    std::vector<Arg> reals;
    for (const Tensor& t : in)
      if (is_real(t.dtype())) reals.emplace_back(t);
    run([&] {
      const Tensor y = row.fn(in);
      if (is_real(y.dtype())) grad(y, ones(y.shape(), y.dtype()), reals);
      for (NodeId id = 0; id < tape().nodes.size(); ++id) seen.insert(std::string(tape().op(id).name));
    });
  }
  // Tested elsewhere: states in test_tape, the optimizer in test_optim, what a benchmark does with results in test_bench.
  for (const char* other : {"state", "assign", "assign_at", "adamw", "global_norm", "keep"}) seen.insert(other);
  for (const Op* op : registered_ops()) EXPECT_TRUE(seen.count(std::string(op->name))) << op->name << " has no row in op_cases.cpp";
}

}  // namespace
}  // namespace weft
