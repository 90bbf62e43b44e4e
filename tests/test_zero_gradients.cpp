// Gradients that are zero whatever the values are: they are there, as zeros.
#include <gtest/gtest.h>

#include <functional>
#include <vector>

#include "tools/weft.h"

namespace weft {
namespace {

struct Flat {
  const char* name;
  std::function<Tensor(const Param&)> loss;
};

const std::vector<Flat> kFlat = {
    {"sign", [](const Param& w) { return sum(sign(w)); }},
    {"floor", [](const Param& w) { return sum(floor(w)); }},
    {"times zero", [](const Param& w) { return sum(w * w) * 0.0; }},
    {"a clamp beyond its ends", [](const Param& w) { return sum(clamp(w + 0.0, 5, 6)); }},
};

Param weights() {
  Param w({2});
  w.set<float>({1.5f, -2.5f});
  return w;
}

TEST(ZeroGradients, ArriveAtParametersAndAreStepsOfTheOptimizer) {
  for (const Flat& flat : kFlat) {
    SCOPED_TRACE(flat.name);
    for (const bool eager : {false, true}) {
      const Param w = weights();
      const auto record = [&] { backward(flat.loss(w)); };
      eager ? record() : run(record);
      EXPECT_EQ(w.gradient<float>(), (std::vector<float>{0, 0}));
      Param v = weights();
      AdamW opt({v}, {.lr = 0.5, .weight_decay = 0.5});
      v.set_decay(true);
      for (int i = 0; i < 2; ++i)  // the second one is replayed
        run([&] {
          backward(flat.loss(v));
          opt.step();
        });
      EXPECT_EQ(opt.step_count(), 2);
      EXPECT_FLOAT_EQ(v.to_host<float>()[0], 1.5f * 0.75f * 0.75f) << "it decays";
    }
  }
}

TEST(ZeroGradients, OfOneParameterBesideAnother) {
  const Param flat = weights(), other = weights();
  run([&] { backward(sum(sign(flat)) + sum(square(other))); });
  EXPECT_TRUE(flat.has_gradient());
  EXPECT_EQ(flat.gradient<float>(), (std::vector<float>{0, 0}));
  EXPECT_EQ(other.gradient<float>(), (std::vector<float>{3, -5}));
}

TEST(ZeroGradients, AreReturnedByGrad) {
  for (const Flat& flat : kFlat) {
    SCOPED_TRACE(flat.name);
    const Param w = weights();
    EXPECT_EQ(run([&] { return grad(flat.loss(w), {w})[0]; }).to_host<float>(), (std::vector<float>{0, 0}));
  }
}

TEST(ZeroGradients, AreNoneWhereNothingDepends) {
  const Param compared = weights(), detached = weights(), other = weights();
  run([&] { backward(sum(where(greater(compared, 0.0), other, other * 2.0)) + sum(detach(detached))); });
  EXPECT_FALSE(compared.has_gradient());
  EXPECT_FALSE(detached.has_gradient());
  EXPECT_TRUE(other.has_gradient());
}

}  // namespace
}  // namespace weft
