// Attention: a golden vector, the form with T^2 memory made of other ops in fp64 for every hole and gradient, rows and places
// that see nothing, the precision of bf16 and fp32, the same bits for any number of threads, memory, and what is refused.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "autograd/backward.h"
#include "autograd/check.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "autograd/state.h"
#include "jit/parallel.h"
#include "ops/ops.h"
#include "tests/expect_error.h"
#include "tests/values.h"

namespace weft {
namespace {

using Place = std::int64_t;
using Tensors = std::vector<Tensor>;

Tensor draw(const Shape& shape, std::uint64_t stream, double size = 1) {
  return Tensor::from(irregular(shape.numel(), -size, size, stream), shape);
}

void expect_near(const Tensor& got, const Tensor& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.shape(), expected.shape()) << what;
  const Values g = got.to_host<double>(), e = expected.to_host<double>();
  double scale = 1;
  for (const double x : e) scale = std::max(scale, std::abs(x));
  for (std::size_t i = 0; i < g.size(); ++i) ASSERT_NEAR(g[i], e[i], tolerance * scale) << what << " at " << i;
}

// ---- the form that has all scores at once, of other ops ---------------------------------------------------------------------

struct Sizes {
  Place b, tq, tk, h, g, dk, dv;
  Tensor q() const { return draw({b, tq, h, dk}, 1, 1.5); }
  Tensor k() const { return draw({b, tk, g, dk}, 2, 1.5); }
  Tensor v() const { return draw({b, tk, g, dv}, 3); }
  Tensor upstream() const { return draw({b, tq, h, dv}, 4); }
  Shape scores() const { return {b, h, tq, tk}; }
  std::string text() const {
    return to_string(Shape{b, tq, h, dk}) + " by " + to_string(Shape{b, tk, g, dk}) + ", dv " + std::to_string(dv);
  }
};

using AtPlace = std::function<double(Place b, Place h, Place i, Place j)>;

// f at each place, as a tensor (b, h, tq, tk).
Tensor table(const Sizes& z, DType dtype, const AtPlace& f) {
  Values values;
  for (Place b = 0; b < z.b; ++b)
    for (Place h = 0; h < z.h; ++h)
      for (Place i = 0; i < z.tq; ++i)
        for (Place j = 0; j < z.tk; ++j) values.push_back(f(b, h, i, j));
  return cast(Tensor::from(values, z.scores()), dtype);
}

struct Composed {
  AtPlace visible = [](Place, Place, Place, Place) { return 1.0; };
  std::function<Tensor(const Tensor&)> score = [](const Tensor& s) { return s; };
  AtPlace weight = nullptr;
  double scale = 0;
};

// Groups are repeated for their heads; everything is in the type of q.
Tensor composed(const Sizes& z, const Tensor& q, const Tensor& k, const Tensor& v, const Composed& c) {
  const auto by_head = [&](const Tensor& x) {
    const Place t = x.dim(1), heads = x.dim(2), d = x.dim(3);
    const Tensor moved = reshape(permute(x, {0, 2, 1, 3}), {z.b, heads, 1, t, d});
    return reshape(expand(moved, {z.b, heads, z.h / heads, t, d}), {z.b, z.h, t, d});
  };
  const double scale = c.scale != 0 ? c.scale : 1 / std::sqrt(double(z.dk));
  const Tensor s = c.score(matmul(by_head(q), transpose(by_head(k))) * scale);
  const Tensor visible = table(z, DType::boolean, c.visible), some = table(z, q.dtype(), c.visible);
  // Rows that see nothing: a softmax of zeros, multiplied with 0.
  const Tensor any = max(some, {-1}, true), low = full({}, -std::numeric_limits<double>::infinity(), q.dtype());
  Tensor p = softmax(where(equal(any, 0.0), zeros({}, q.dtype()), where(visible, s, low))) * any;
  if (c.weight) p = p * table(z, q.dtype(), c.weight);
  return permute(matmul(p, by_head(v)), {0, 2, 1, 3});
}

// Both give the same value and the same gradients by `wrt`.
void expect_same(const Tensor& got, const Tensor& expected, const Tensor& upstream, const std::vector<Arg>& wrt,
                 const std::string& what, double tolerance = 1e-12) {
  const Tensors d = grad(got, upstream, wrt), e = grad(expected, upstream, wrt);
  expect_near(got, expected, tolerance, what);
  for (std::size_t k = 0; k < d.size(); ++k) expect_near(d[k], e[k], tolerance, what + ", gradient " + std::to_string(k));
}

const double kNan = std::numeric_limits<double>::quiet_NaN();

// Tiles are 64 by 128 on the CPU.
const Sizes kSizes[] = {{1, 1, 1, 1, 1, 8, 8},      {2, 5, 5, 2, 1, 8, 8},     {1, 97, 97, 4, 2, 16, 24},
                        {1, 130, 257, 2, 2, 8, 24}, {2, 200, 70, 3, 1, 24, 8}, {1, 64, 128, 1, 1, 8, 8},
                        {1, 3, 300, 2, 1, 8, 16},   {1, 129, 129, 6, 2, 10, 6}};

// ---- values and gradients ---------------------------------------------------------------------------------------------------

// (heads, t, d) as (1, t, heads, d), and back.
Tensor channel_last(const Values& v, Place heads, Place t, Place d) {
  return permute(Tensor::from(v, {1, heads, t, d}), {0, 2, 1, 3});
}
Values by_head(const Tensor& t) { return permute(t, {0, 2, 1, 3}).to_host<double>(); }

TEST(Attention, GoldenG5) {
  const Tensor q = channel_last(gen(16, 4.1), 2, 4, 2), k = channel_last(gen(8, 4.2), 1, 4, 2),
               v = channel_last(gen(8, 4.3), 1, 4, 2), g = channel_last(gen(16, 4.4), 2, 4, 2);
  const Tensor o =
      attention(q, k, v, {.causal = true, .mask = [](Index, Index, Index i, Index j) { return i - j < 2 || j < 1; }});
  const Tensors d = grad(o, g, {q, k, v});
  const auto expect = [](const Tensor& got, const Values& expected, const char* what) {
    const Values values = by_head(got);
    ASSERT_EQ(values.size(), expected.size()) << what;
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], expected[i], 1e-8) << what << " at " << i;
  };
  expect(o,
         {-0.99910172, -0.94681378, -0.89935173, -0.74767816, -0.65552456, -0.42775806, 0.11300408, 0.37554278, -0.99910172,
          -0.94681378, -0.8635808, -0.67626696, -0.57226474, -0.31911612, -0.43117887, -0.24586268},
         "o");
  expect(d[0],
         {0, 0, -0.00974522, -0.02430008, 0.03235703, 0.04677447, 0.33825232, 0.38592772, 0, 0, 0.01252951, 0.03124282,
          0.00119334, 0.00115181, -0.363749, -0.452788},
         "dq");
  expect(d[1], {-0.25697363, -0.40583691, 0.12483945, 0.09738241, -0.01429904, 0.01747127, 0.14643322, 0.29098322}, "dk");
  expect(d[2], {-0.17430284, -0.12626073, 0.2305665, 0.21877022, 0.1386106, 0.09141397, 0.24483691, 0.31165836}, "dv");
}

TEST(Attention, EqualsTheComposedForm) {
  for (const Sizes& z : kSizes) {
    const Tensor q = z.q(), k = z.k(), v = z.v(), g = z.upstream();
    expect_same(attention(q, k, v), composed(z, q, k, v, {}), g, {q, k, v}, "all keys, " + z.text());
    const Place away = z.tk - z.tq;
    expect_same(attention(q, k, v, {.scale = 0.3, .causal = true}),
                composed(z, q, k, v, {.visible = [&](Place, Place, Place i, Place j) { return j <= i + away; }, .scale = 0.3}),
                g, {q, k, v}, "causal, " + z.text());
    const auto window = [](auto i, auto j) { return i >= j && (i - j < 20 || j < 7); };
    expect_same(attention(q, k, v, {.mask = [&](Index, Index, Index i, Index j) { return window(i, j); }}),
                composed(z, q, k, v, {.visible = [&](Place, Place, Place i, Place j) { return window(i, j); }}), g, {q, k, v},
                "window and prefix, " + z.text());
  }
}

// Masks of the batch element, of the head, and of tensors; the segments are not sorted.
TEST(Attention, MasksOfBatchHeadAndSegments) {
  const Sizes z{2, 150, 150, 4, 2, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), g = z.upstream();
  expect_same(
      attention(q, k, v, {.mask = [](Index b, Index h, Index i, Index j) { return i + b >= j && i - j < 10 * (h + 1); }}),
      composed(z, q, k, v, {.visible = [](Place b, Place h, Place i, Place j) { return i + b >= j && i - j < 10 * (h + 1); }}),
      g, {q, k, v}, "batch and head");
  std::vector<std::int32_t> ids;
  for (int n = 0; n < 300; ++n) ids.push_back(n / 40 % 3 + n / 150);
  const Tensor segments = Tensor::from(ids, {2, 150});
  const auto same_id = [&](Place b, Place, Place i, Place j) {
    return j <= i && ids[std::size_t(b * 150 + i)] == ids[std::size_t(b * 150 + j)];
  };
  expect_same(attention(q, k, v, {.causal = true, .segments = segments}), composed(z, q, k, v, {.visible = same_id}), g,
              {q, k, v}, "segments");
  expect_same(
      attention(q, k, v,
                {.mask = [&](Index b, Index, Index i, Index j) { return j <= i && equal(segments(b, i), segments(b, j)); }}),
      composed(z, q, k, v, {.visible = same_id}), g, {q, k, v}, "a mask that reads a tensor");
}

// A Scalar in a mask may change every step, in one plan.
TEST(Attention, ScalarsInAMask) {
  const Sizes z{1, 140, 140, 2, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v();
  Scalar window, length;
  for (const Place w : {1, 5, 64, 100, 500}) {
    window.set(double(w)), length.set(double(140 - w / 4));
    const Tensor got = run([&] {
      return attention(q, k, v, {.mask = [&](Index, Index, Index i, Index j) {
                         return i >= j && i - j < to_integer(window) && j < to_integer(length);
                       }});
    });
    EXPECT_EQ(last_run().replayed, w != 1) << w;
    expect_near(got,
                composed(z, q, k, v,
                         {.visible = [&](Place, Place, Place i, Place j) { return i >= j && i - j < w && j < 140 - w / 4; }}),
                1e-12, std::to_string(w));
  }
}

// ---- score, and the gradients of what it captures ---------------------------------------------------------------------------

TEST(Attention, SoftCap) {
  for (const Sizes& z : {Sizes{1, 70, 70, 2, 1, 8, 8}, Sizes{2, 9, 140, 2, 2, 8, 8}}) {
    const Tensor q = z.q(), k = z.k(), v = z.v(), g = z.upstream();
    const auto cap = [](const auto& s) { return 0.7 * tanh(s / 0.7); };
    expect_same(attention(q, k, v, {.score = [&](Expr s) { return cap(s); }}), composed(z, q, k, v, {.score = cap}), g,
                {q, k, v}, z.text());
  }
}

// A load in the score, its shape, and the element that it reads.
struct Capture {
  const char* name;
  std::function<Shape(const Sizes&)> shape;
  std::function<Expr(const Sizes&, const Tensor&, Index b, Index h, Index i, Index j)> load;
  std::function<Place(const Sizes&, Place b, Place h, Place i, Place j)> element;
};

const Capture kCaptures[] = {
    {"a number", [](const Sizes&) { return Shape{1}; },
     [](const Sizes&, const Tensor& x, Index, Index, Index, Index) { return x(0); },
     [](const Sizes&, Place, Place, Place, Place) { return Place(0); }},
    {"slopes of heads", [](const Sizes& z) { return Shape{z.h}; },
     [](const Sizes&, const Tensor& x, Index, Index h, Index, Index) { return x(h); },
     [](const Sizes&, Place, Place h, Place, Place) { return h; }},
    {"batch and head",
     [](const Sizes& z) {
       return Shape{z.h, z.b};
     },
     [](const Sizes&, const Tensor& x, Index b, Index h, Index, Index) { return x(h, b); },
     [](const Sizes& z, Place b, Place h, Place, Place) { return h * z.b + b; }},
    {"a row",
     [](const Sizes& z) {
       return Shape{z.h, z.tq};
     },
     [](const Sizes&, const Tensor& x, Index, Index h, Index i, Index) { return x(h, i); },
     [](const Sizes& z, Place, Place h, Place i, Place) { return h * z.tq + i; }},
    {"a row, backwards", [](const Sizes& z) { return Shape{z.tq}; },
     [](const Sizes& z, const Tensor& x, Index, Index, Index i, Index) { return x(Index(z.tq - 1) - i); },
     [](const Sizes& z, Place, Place, Place i, Place) { return z.tq - 1 - i; }},
    {"a column",
     [](const Sizes& z) {
       return Shape{z.b, z.tk};
     },
     [](const Sizes&, const Tensor& x, Index b, Index, Index, Index j) { return x(b, j); },
     [](const Sizes& z, Place b, Place, Place, Place j) { return b * z.tk + j; }},
    {"pairs of columns",
     [](const Sizes& z) {
       return Shape{z.tk, z.h};
     },
     [](const Sizes&, const Tensor& x, Index, Index h, Index, Index j) { return x(j / 2, h); },
     [](const Sizes& z, Place, Place h, Place, Place j) { return j / 2 * z.h + h; }},
    {"a difference",
     [](const Sizes& z) {
       return Shape{z.h, z.tq + z.tk};
     },
     [](const Sizes& z, const Tensor& x, Index, Index h, Index i, Index j) { return x(h, i - j + Index(z.tk)); },
     [](const Sizes& z, Place, Place h, Place i, Place j) { return h * (z.tq + z.tk) + i - j + z.tk; }},
    {"a difference, the other way round", [](const Sizes& z) { return Shape{z.tq + z.tk + 2 * z.h}; },
     [](const Sizes& z, const Tensor& x, Index, Index h, Index i, Index j) { return x(j + Index(z.tq) - i + 2 * h); },
     [](const Sizes& z, Place, Place h, Place i, Place j) { return j + z.tq - i + 2 * h; }},
    {"a clamped distance", [](const Sizes&) { return Shape{13}; },
     [](const Sizes&, const Tensor& x, Index, Index, Index i, Index j) { return x(clamp(i - j, -6, 6) + 6); },
     [](const Sizes&, Place, Place, Place i, Place j) { return std::clamp<Place>(i - j, -6, 6) + 6; }},
    {"buckets of distances",
     [](const Sizes& z) {
       return Shape{z.h, 5};
     },
     [](const Sizes&, const Tensor& x, Index, Index h, Index i, Index j) { return x(h, min((i - j) * (i - j) / 3, 4)); },
     [](const Sizes&, Place, Place h, Place i, Place j) { return h * 5 + std::min<Place>((i - j) * (i - j) / 3, 4); }},
};

// The elements of x that a load reads at each place, by an embedding.
Tensor read_everywhere(const Sizes& z, const Capture& c, const Tensor& x) {
  std::vector<std::int64_t> elements;
  for (Place b = 0; b < z.b; ++b)
    for (Place h = 0; h < z.h; ++h)
      for (Place i = 0; i < z.tq; ++i)
        for (Place j = 0; j < z.tk; ++j) elements.push_back(c.element(z, b, h, i, j));
  const Tensor ids = Tensor::from(elements, {Place(elements.size())});
  return reshape(embedding(reshape(x, {x.numel(), 1}), ids), z.scores());
}

TEST(Attention, GradientsOfWhatTheScoreCaptures) {
  for (const Sizes& z : {Sizes{2, 7, 7, 2, 1, 8, 8}, Sizes{2, 70, 140, 2, 2, 8, 8}, Sizes{1, 130, 20, 4, 2, 8, 8}})
    for (const Capture& c : kCaptures) {
      const Tensor q = z.q(), k = z.k(), v = z.v(), x = draw(c.shape(z), 7);
      const auto body = [](const auto& s, const auto& e) { return s * (e + 0.8) + sin(e * 3.0); };
      const auto visible = [](auto i, auto j) { return i + 30 >= j && i - j < 50; };
      expect_same(
          attention(q, k, v,
                    {.score = [&](Expr s, Index b, Index h, Index i, Index j) { return body(s, c.load(z, x, b, h, i, j)); },
                     .mask = [&](Index, Index, Index i, Index j) { return visible(i, j); }}),
          composed(z, q, k, v,
                   {.visible = [&](Place, Place, Place i, Place j) { return visible(i, j); },
                    .score = [&](const Tensor& s) { return body(s, read_everywhere(z, c, x)); }}),
          z.upstream(), {q, k, v, x}, c.name + (", " + z.text()));
    }
}

// Two loads of one tensor, and one that is q itself.
TEST(Attention, ATensorThatTheScoreReadsTwice) {
  const Sizes z{2, 6, 6, 2, 2, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), x = draw({2, 6}, 7);
  const Tensor rows = reshape(x, {1, 2, 6, 1}), columns = reshape(x, {1, 2, 1, 6});
  expect_same(attention(q, k, v,
                        {.score = [&](Expr s, Index b, Index h, Index i,
                                      Index j) { return s + x(h, i) * x(h, j) + q(b, i, h, 3) * 0.1; }}),
              composed(z, q, k, v,
                       {.score =
                            [&](const Tensor& s) {
                              const Tensor three = permute(slice(q, 3, 3, 4), {0, 2, 1, 3});
                              return s + rows * columns + three * 0.1;
                            }}),
              z.upstream(), {q, k, v, x}, "twice");
}

// Where nothing is seen the subscript may leave the tensor: no clamp is needed under a causal mask.
TEST(Attention, SubscriptsMayLeaveATensorWhereNothingIsSeen) {
  for (const bool by_scalar : {false, true}) {
    const Sizes z{1, 140, 140, 2, 1, 8, 8};
    const Tensor q = z.q(), k = z.k(), v = z.v(), bias = draw({2, 30}, 7);
    const Scalar window(30);
    const auto visible = [&](Index, Index, Index i, Index j) {
      return i >= j && i - j < (by_scalar ? to_integer(window) : Index(30));
    };
    const Capture reads{"", nullptr, nullptr, [](const Sizes&, Place, Place h, Place i, Place j) {
                          return h * 30 + std::clamp<Place>(i - j, 0, 29);
                        }};
    expect_same(
        attention(q, k, v,
                  {.score = [&](Expr s, Index, Index h, Index i, Index j) { return s + bias(h, i - j); }, .mask = visible}),
        composed(z, q, k, v,
                 {.visible = [](Place, Place, Place i, Place j) { return i >= j && i - j < 30; },
                  .score = [&](const Tensor& s) { return s + read_everywhere(z, reads, bias); }}),
        z.upstream(), {q, k, v, bias}, by_scalar ? "window of a Scalar" : "window");
  }
}

// Nor where a subscript is looked up in another tensor, as the relative positions of T5 are (arXiv:1910.10683).
TEST(Attention, ASubscriptThatIsLookedUpMayLeaveItsTensorToo) {
  const Sizes z{1, 40, 40, 2, 1, 8, 8};
  const auto bucket_of = [](Place distance) { return std::min<Place>(distance, 4 + distance / 8); };
  std::vector<std::int64_t> buckets;
  for (Place d = 0; d < 40; ++d) buckets.push_back(bucket_of(d));
  const Tensor q = z.q(), k = z.k(), v = z.v(), bias = draw({2, 9}, 7), bucket = Tensor::from(buckets, {40});
  const Capture reads{"", nullptr, nullptr, [&](const Sizes&, Place, Place h, Place i, Place j) {
                        return h * 9 + bucket_of(std::max<Place>(i - j, 0));
                      }};
  expect_same(attention(q, k, v,
                        {.causal = true,
                         .score = [&](Expr s, Index, Index h, Index i, Index j) { return s + bias(h, bucket(i - j)); }}),
              composed(z, q, k, v,
                       {.visible = [](Place, Place, Place i, Place j) { return i >= j; },
                        .score = [&](const Tensor& s) { return s + read_everywhere(z, reads, bias); }}),
              z.upstream(), {q, k, v, bias}, "buckets");
}

TEST(Attention, Weight) {
  const Sizes z{2, 70, 130, 2, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), factors = draw({70, 130}, 8);
  const Values values = factors.to_host<double>();
  expect_same(
      attention(q, k, v,
                {.causal = true, .weight = [&](Index, Index h, Index i, Index j) { return factors(i, j) + to_real(h); }}),
      composed(z, q, k, v,
               {.visible = [](Place, Place, Place i, Place j) { return j <= i + 60; },
                .weight = [&](Place, Place h, Place i, Place j) { return values[std::size_t(i * 130 + j)] + double(h); }}),
      z.upstream(), {q, k, v}, "weight");
}

// Values that are the rows of the identity show each weight. Backward draws the same, another run others.
TEST(Attention, DroppedProbabilities) {
  const Sizes z{2, 70, 70, 2, 1, 8, 70};
  Values ones(2 * 70 * 70);
  for (std::size_t row = 0; row < 140; ++row) ones[row * 70 + row % 70] = 1;
  const Tensor q = z.q(), k = z.k(), v = Tensor::from(ones, {2, 70, 1, 70}), g = z.upstream();
  Rng generator(3);
  const UseRng use(generator);
  const auto step = [&](double p) {
    return run([&] {
      const Tensor o = attention(q, k, v, {.causal = true, .weight = dropped(p)});
      Tensors all = grad(o, g, {q, k, v});
      all.push_back(o);
      return all;
    });
  };
  const Tensors got = step(0.3);
  const Values map = attention_map(q, k, {.causal = true}).to_host<double>(), o = by_head(got[3]);
  Values weights(map.size());
  std::int64_t seen = 0, gone = 0, equal_heads = 0;
  for (std::size_t at = 0; at < map.size(); ++at) {
    if (map[at] == 0) continue;
    weights[at] = o[at] / map[at];
    ++seen, gone += o[at] == 0;
    if (o[at] != 0) {
      ASSERT_NEAR(weights[at], 1 / 0.7, 1e-12);
    }
    equal_heads += at / 4900 % 2 && (o[at] == 0) == (o[at - 4900] == 0);
  }
  EXPECT_NEAR(double(gone) / double(seen), 0.3, 0.02);
  EXPECT_NEAR(double(equal_heads) / double(seen / 2), 0.58, 0.03);  // 0.7^2 + 0.3^2
  const auto weight = [&](Place b, Place h, Place i, Place j) { return weights[std::size_t(((b * 2 + h) * 70 + i) * 70 + j)]; };
  const Tensors expected = grad(
      composed(z, q, k, v, {.visible = [](Place, Place, Place i, Place j) { return j <= i; }, .weight = weight}), g, {q, k, v});
  for (std::size_t n = 0; n < 3; ++n) expect_near(got[n], expected[n], 1e-12, "gradient " + std::to_string(n));
  EXPECT_NE(by_head(step(0.3)[3]), o);
  EXPECT_TRUE(last_run().replayed);
  for (const double e : step(1)[3].to_host<double>()) ASSERT_EQ(e, 0);
  expect_near(step(0)[3], attention(q, k, v, {.causal = true}), 0, "nothing is dropped");
  expect_error(ErrorKind::usage, {"dropped: p is not a probability", "1.5", "test_attention.cpp", "hint: "},
               [] { dropped(1.5); });
}

// Rotary position embeddings against the same rotation before the op.
TEST(Attention, RotateBothPairings) {
  const Sizes z{2, 70, 133, 4, 2, 12, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), angle = draw({133, 6}, 9, 3);
  for (const Pairing pairing : {Pairing::halves, Pairing::neighbours}) {
    const auto turned = [&](const Tensor& x) {
      const bool halves = pairing == Pairing::halves;
      const Place t = x.dim(1), heads = x.dim(2);
      const Tensor pairs =
          halves ? permute(reshape(x, {z.b, t, heads, 2, 6}), {0, 1, 2, 4, 3}) : reshape(x, {z.b, t, heads, 6, 2});
      const Tensor a = reshape(slice(angle, 0, 0, t), {1, t, 1, 6, 1}), c = cos(a), s = sin(a);
      const Tensor first = slice(pairs, 4, 0, 1), second = slice(pairs, 4, 1, 2);
      const Tensor both = concat({first * c - second * s, second * c + first * s}, 4);
      return reshape(halves ? permute(both, {0, 1, 2, 4, 3}) : both, {z.b, t, heads, 12});
    };
    const auto rotation = [&](Expr x, Expr y, Index, Index, Index t, Index p) {
      const Expr c = cos(angle(t, p)), s = sin(angle(t, p));
      return Pair{x * c - y * s, y * c + x * s};
    };
    expect_same(attention(q, k, v, {.causal = true, .rotate = rotation, .pairing = pairing}),
                attention(turned(q), turned(k), v, {.causal = true}), z.upstream(), {q, k, v},
                pairing == Pairing::halves ? "halves" : "neighbours");
  }
}

// ---- nothing to see ---------------------------------------------------------------------------------------------------------

TEST(Attention, ARowWithoutKeysIsZeroAndHasNoGradient) {
  const Sizes z{1, 140, 140, 2, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), bias = draw({140}, 7);
  const Tensor o = attention(q, k, v,
                             {.score = [&](Expr s, Index, Index, Index i, Index) { return s + bias(i); },
                              .mask = [](Index, Index, Index i, Index j) { return i >= 70 && i < 139 && j < 69; }});
  const Tensors d = grad(o, z.upstream(), {q, k, v, bias});
  const Values out = o.to_host<double>(), dq = d[0].to_host<double>(), dk = d[1].to_host<double>();
  for (Place i = 0; i < 140; ++i)
    for (Place c = 0; c < 16; ++c) {
      const auto at = std::size_t(i * 16 + c);
      EXPECT_EQ(out[at] == 0, i < 70 || i == 139) << i;
      EXPECT_EQ(dq[at] == 0, i < 70 || i == 139) << i;
      if (c < 8) {
        EXPECT_EQ(dk[std::size_t(i * 8 + c)] == 0, i >= 69) << i;
      }
    }
  for (const Tensor& x : d)
    for (const double e : x.to_host<double>()) ASSERT_TRUE(std::isfinite(e));
  const Tensor nothing = attention(q, k, v, {.mask = [](Index, Index, Index i, Index j) { return i + j < 0; }});
  for (const Tensor& x : grad(nothing, z.upstream(), {q, k, v}))
    for (const double e : x.to_host<double>()) ASSERT_EQ(e, 0);
  for (const double e : nothing.to_host<double>()) ASSERT_EQ(e, 0);
}

// A score of -inf hides too, a whole row of them like a row without keys.
TEST(Attention, AScoreOfMinusInfinityHides) {
  const Sizes z{1, 70, 130, 1, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v();
  const auto seen = [](auto i, auto j) { return j <= i && i - j < 9 && i != 5; };
  const auto shown = [](Index i, Index j) { return j <= i && i - j < 9 && not_equal(i, 5); };
  const Expr low = expr::literal(-std::numeric_limits<double>::infinity());
  expect_same(attention(q, k, v, {.score = [&](Expr s, Index, Index, Index i, Index j) { return where(shown(i, j), s, low); }}),
              composed(z, q, k, v, {.visible = [&](Place, Place, Place i, Place j) { return seen(i, j); }}), z.upstream(),
              {q, k, v}, "minus infinity");
}

// A score that is NaN or infinite where nothing is seen, and whose slopes are, leaves no trace; nor do such weights.
TEST(Attention, WhatIsHiddenMayBeNan) {
  const Sizes z{1, 70, 140, 2, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), x = draw({2}, 7), gain = draw({140}, 8);
  const auto behind = [](Place, Place, Place i, Place j) { return double(j < i); };
  const Tensor distance =
      table(z, DType::f64, [](Place, Place, Place i, Place j) { return j < i ? std::log(double(i - j)) : 0; });
  for (const bool inverse : {false, true}) {
    const Tensor factor =
        inverse ? table(z, DType::f64, [](Place, Place, Place i, Place j) { return j < i ? 1.0 / double(i - j) : 0; })
                : distance;
    expect_same(attention(q, k, v,
                          {.score =
                               [&](Expr s, Index, Index h, Index i, Index j) {
                                 const Expr far = to_real(i - j), f = inverse ? 1 / far : log(far);  // inf, and NaN
                                 return (s * x(h) + gain(j)) * f;
                               },
                           .mask = [](Index, Index, Index i, Index j) { return j < i; },
                           .weight = [](Index, Index, Index i, Index j) { return sqrt(to_real(i - j)); }}),
                composed(z, q, k, v,
                         {.visible = behind,
                          .score =
                              [&](const Tensor& s) {
                                return (s * reshape(x, {2, 1, 1}) + gain) * factor;
                              },
                          .weight = [](Place, Place, Place i, Place j) { return j < i ? std::sqrt(double(i - j)) : 0; }}),
                z.upstream(), {q, k, v, x, gain}, inverse ? "infinite" : "NaN");
  }
}

// What the mask hides in a whole tile is not computed with, so that the work of a window is linear in time.
TEST(Attention, HiddenTilesAreNotRead) {
  if (is_gpu(device())) GTEST_SKIP() << "its tiles are those of the CPU";
  const Sizes z{1, 640, 640, 1, 1, 8, 8};
  const auto spoilt = [](const Tensor& x, bool late) {
    Values values = x.to_host<double>();
    for (std::size_t t = 0; t < 640; ++t)
      for (std::size_t c = 0; c < 8; ++c)
        if (late ? t >= 384 : t < 256) values[t * 8 + c] = kNan;
    return Tensor::from(values, x.shape());
  };
  const auto rows = [](const Tensor& x, Place begin, Place end) { return slice(x, 1, begin, end); };
  const AttentionOptions window{.causal = true, .mask = [](Index, Index, Index i, Index j) { return i - j < 128; }};
  const Tensor q = z.q(), k = z.k(), v = z.v(), o = attention(q, k, v, window);
  const Tensor early = attention(q, spoilt(k, true), spoilt(v, true), window);
  EXPECT_EQ(rows(early, 0, 384).to_host<double>(), rows(o, 0, 384).to_host<double>());
  const Tensor late = attention(q, spoilt(k, false), spoilt(v, false), window);
  EXPECT_EQ(rows(late, 384, 640).to_host<double>(), rows(o, 384, 640).to_host<double>());
}

TEST(Attention, EmptyShapes) {
  for (const Sizes& z : {Sizes{0, 3, 3, 2, 1, 8, 8}, Sizes{1, 0, 0, 2, 1, 8, 8}, Sizes{1, 0, 5, 2, 1, 8, 8},
                         Sizes{2, 5, 0, 2, 1, 8, 8}, Sizes{1, 4, 4, 2, 1, 8, 0}}) {
    const Tensor q = z.q(), k = z.k(), v = z.v(), slopes = draw({2}, 7);
    const Tensor o =
        attention(q, k, v,
                  {.score = [&](Expr s, Index, Index h, Index i, Index j) { return s - slopes(h) * to_real(i - j); },
                   .mask = [](Index, Index, Index i, Index j) { return j <= i; }});
    EXPECT_EQ(o.shape(), (Shape{z.b, z.tq, z.h, z.dv}));
    Tensors all = grad(o, z.upstream(), {q, k, v, slopes});
    all.push_back(o);
    for (const Tensor& x : all)
      for (const double e : x.to_host<double>()) EXPECT_EQ(e, 0) << z.text();
    const Tensor p = attention_map(q, k);
    EXPECT_EQ(p.shape(), z.scores());
  }
}

// ---- the map ----------------------------------------------------------------------------------------------------------------

TEST(Attention, TheMapIsWhatAttentionWeighsValuesWith) {
  const Sizes z{2, 70, 70, 4, 2, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), bias = draw({4, 70}, 7);
  const AttentionOptions options{.causal = true,
                                 .score = [&](Expr s, Index, Index h, Index i, Index j) { return s + bias(h, i - j); }};
  const Tensor p = attention_map(q, k, options), o = attention(q, k, v, options);
  const Values values = p.to_host<double>();
  for (Place row = 0; row < 2 * 4 * 70; ++row) {
    double total = 0;
    for (Place j = 0; j < 70; ++j) {
      const double e = values[std::size_t(row * 70 + j)];
      total += e;
      EXPECT_EQ(e == 0, j > row % 70) << row << ", " << j;
    }
    EXPECT_NEAR(total, 1, 1e-12) << row;
  }
  const Tensor grouped = matmul(reshape(p, {2, 2, 140, 70}), permute(v, {0, 2, 1, 3}));
  expect_near(o, permute(reshape(grouped, {2, 4, 70, 8}), {0, 2, 1, 3}), 1e-12, "o");
  EXPECT_EQ(attention_map(cast(q, DType::bf16), cast(k, DType::bf16)).dtype(), DType::f32);
}

// ---- types, strides, threads, memory ----------------------------------------------------------------------------------------

TEST(Attention, ResultsHaveTheTypesOfTheOperands) {
  const Sizes z{1, 9, 9, 2, 1, 8, 8};
  const Tensor q = cast(z.q(), DType::bf16), k = cast(z.k(), DType::f32), v = cast(z.v(), DType::bf16);
  const Tensor slopes = cast(draw({2}, 7), DType::f32);
  const Tensor o =
      attention(q, k, v, {.score = [&](Expr s, Index, Index h, Index i, Index j) { return s - slopes(h) * to_real(i - j); }});
  EXPECT_EQ(o.dtype(), DType::bf16);
  const Tensors d = grad(o, ones(o.shape(), DType::bf16), {q, k, v, slopes});
  for (const auto& [got, from] : {std::pair(d[0], q), std::pair(d[1], k), std::pair(d[2], v), std::pair(d[3], slopes)}) {
    EXPECT_EQ(got.dtype(), from.dtype());
    EXPECT_EQ(got.shape(), from.shape());
  }
}

// Slices of one projection, as a layer gives them, and operands that are broadcast.
TEST(Attention, ReadsOperandsWhereTheyLie) {
  const Tensor all = draw({2, 70, 64}, 5), one = draw({1, 1, 2, 8}, 6);
  const auto dense = [](const Tensor& x) { return Tensor::from(x.to_host<double>(), x.shape()); };
  const auto part = [&](Place begin, Place heads) {
    return reshape(slice(all, 2, begin, begin + 8 * heads), {2, 70, heads, 8});
  };
  const Tensor a = dense(part(0, 4)), b = dense(part(32, 2)), c = dense(expand(one, {2, 70, 2, 8}));
  const Tensors got = run([&] {
    const Tensor o = attention(part(0, 4), part(32, 2), expand(one, {2, 70, 2, 8}), {.causal = true});
    Tensors out = grad(sum(o), {all, one});
    out.push_back(o);
    return out;
  });
  const Tensors expected = run([&] {
    const Tensor o = attention(a, b, c, {.causal = true});
    Tensors out = grad(sum(o), {a, b, c});
    out.push_back(o);
    return out;
  });
  EXPECT_EQ(got[2].to_host<double>(), expected[3].to_host<double>());
  const auto flat = [](const Tensor& x, Place heads) { return reshape(x, {2, 70, 8 * heads}); };
  expect_near(got[0], concat({flat(expected[0], 4), flat(expected[1], 2), zeros({2, 70, 16}, DType::f64)}, 2), 1e-13, "slices");
  expect_near(got[1], sum(expected[2], {0, 1}, true), 1e-13, "broadcast");
}

// The score and the weight hold the most tensors, constants and elements that they may, and so do the gradients.
TEST(Attention, HolesHoldAsMuchAsTheyMay) {
  const Sizes z{1, 9, 9, 2, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v();
  Tensors x, fixed;
  for (std::size_t n = 0; n < kMostCaptured; ++n) x.push_back(draw({10}, 20 + n)), fixed.push_back(draw({10}, 40 + n));
  const auto sum_of = [](const Tensors& tensors, Index i, Index j) {
    Expr all = 0;
    for (int n = 0; n < int(tensors.size()); ++n) {
      const Tensor& t = tensors[std::size_t(n)];
      all = all + 0.1 * (n + 3) * t(i) * (0.01 * (n + 30) * t(j + 1));
    }
    return all;
  };
  const auto table_of = [&](const Tensors& tensors) {
    Tensor all = zeros({9, 9}, DType::f64);
    for (int n = 0; n < int(tensors.size()); ++n) {
      const Tensor rows = reshape(slice(tensors[std::size_t(n)], 0, 0, 9), {9, 1});
      all = all + 0.1 * (n + 3) * rows * (0.01 * (n + 30) * slice(tensors[std::size_t(n)], 0, 1, 10));
    }
    return all;
  };
  const Values weights = table_of(fixed).to_host<double>();
  std::vector<Arg> wrt = {q, k, v};
  wrt.insert(wrt.end(), x.begin(), x.end());
  expect_same(attention(q, k, v,
                        {.score = [&](Expr s, Index, Index, Index i, Index j) { return s + sum_of(x, i, j); },
                         .mask = [&](Index, Index, Index i, Index j) { return sum_of(fixed, i, j) > -0.3; },
                         .weight = [&](Index, Index, Index i, Index j) { return sum_of(fixed, i, j); },
                         .rotate =
                             [&](Expr a, Expr b, Index, Index, Index t, Index) {
                               const Expr none = sum_of(fixed, t, t) * 0;
                               return Pair{a + none, b + none};
                             }}),
              composed(z, q, k, v,
                       {.visible = [&](Place, Place, Place i, Place j) { return weights[std::size_t(i * 9 + j)] > -0.3; },
                        .score = [&](const Tensor& s) { return s + table_of(x); },
                        .weight = [&](Place, Place, Place i, Place j) { return weights[std::size_t(i * 9 + j)]; }}),
              z.upstream(), wrt, "full holes");
}

// Value and gradients of everything at once, in fp32.
std::vector<std::vector<float>> everything() {
  const Sizes z{2, 150, 200, 4, 2, 16, 24};
  const auto single = [](const Tensor& x) { return cast(x, DType::f32); };
  const Tensor q = single(z.q()), k = single(z.k()), v = single(z.v()), bias = single(draw({4, 400}, 7)),
               gain = single(draw({2, 150}, 8)), keys = single(draw({4, 200}, 9)), slope = single(draw({1}, 10));
  const Tensor o =
      attention(q, k, v,
                {.score = [&](Expr s, Index b, Index h, Index i,
                              Index j) { return s * gain(b, i) + bias(h, i - j + 200) + keys(h, j) * slope(0); },
                 .mask = [](Index, Index h, Index i, Index j) { return i + 50 >= j && (i - j < 30 * (h + 1) || j < 9); },
                 .rotate =
                     [](Expr x, Expr y, Index, Index, Index t, Index p) {
                       const Expr a = to_real(t) / to_real(1 + p), c = cos(a), s = sin(a);
                       return Pair{x * c - y * s, x * s + y * c};
                     }});
  Tensors all = grad(o, single(z.upstream()), {q, k, v, bias, gain, keys, slope});
  all.push_back(o);
  std::vector<std::vector<float>> out;
  for (const Tensor& x : all) out.push_back(x.to_host<float>());
  return out;
}

TEST(Attention, SameBitsForAnyNumberOfThreads) {
  const int before = threads();
  std::vector<std::vector<std::vector<float>>> all;
  for (const int count : {1, 2, 3, 3}) {
    set_threads(count);
    all.push_back(everything());
  }
  set_threads(before);
  for (const auto& each : all) EXPECT_EQ(each, all[0]);
}

// What comes later does not change the bits of what was before.
TEST(Attention, IsCausal) {
  const Sizes z{1, 200, 200, 2, 1, 8, 8};
  const auto outputs = [&](double change) {
    Values moved(200);
    for (std::size_t t = 150; t < 200; ++t) moved[t] = change;
    const Tensor shift = Tensor::from(moved, {1, 200, 1, 1});
    const auto single = [&](const Tensor& x) { return cast(x + shift, DType::f32); };
    return attention(single(z.q()), single(z.k()), single(z.v()), {.causal = true}).to_host<float>();
  };
  const auto a = outputs(0), b = outputs(1);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 150 * 16, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 150 * 16, a.end(), b.begin() + 150 * 16));
}

// Twice the time, twice the memory; scores of 4096 by 4096 alone would take 64 MB a head.
TEST(SlowAttention, MemoryIsLinearInTime) {
  const auto bytes = [](Place t) {
    const Tensor q = cast(draw({1, t, 2, 16}, 1), DType::f32), k = cast(draw({1, t, 1, 16}, 2), DType::f32),
                 v = cast(draw({1, t, 1, 16}, 3), DType::f32), bias = cast(draw({2, 128}, 4), DType::f32);
    run([&] {
      const Tensor o = attention(q, k, v, {.causal = true, .score = [&](Expr s, Index, Index h, Index i, Index j) {
                                             return s + bias(h, min(i - j, 127));
                                           }});
      return grad(sum(o * o), {q, k, v, bias});
    });
    return last_run().arena_bytes;
  };
  const std::size_t half = bytes(2048), all = bytes(4096);
  // A GPU sums over equal differences tile by tile: numbers (tiles, differences) of each head.
  const std::size_t sums = is_gpu(device()) ? sizeof(float) * 2 * (4096 / 64) * (4096 + 64) : 0;
  EXPECT_LE(all, 2 * half + sums + 65536);
  EXPECT_LE(all, std::size_t(16) << 20);
}

// ---- precision --------------------------------------------------------------------------------------------------------------

// FlashAttention's rule: the error is at most twice that of the composed form in the same precision, both against fp64.
struct PrecisionCase {
  Sizes sizes;
  bool causal;
  Place window;
};

void expect_precise(const PrecisionCase& c, DType dtype) {
  const Sizes& z = c.sizes;
  const auto rounded = [&](const Tensor& x) { return cast(cast(x, dtype), DType::f64); };
  const Tensor q = rounded(z.q()), k = rounded(z.k()), v = rounded(z.v()), g = rounded(z.upstream());
  const Place away = z.tk - z.tq;
  const auto visible = [&](auto i, auto j) { return (c.causal ? j <= i + away : j >= 0) && i + away - j < c.window; };
  const AtPlace at = [&](Place, Place, Place i, Place j) { return visible(i, j); };
  const auto results = [&](DType in, bool flash) {
    const Tensor x = cast(q, in), y = cast(k, in), w = cast(v, in);
    const Tensor o = flash ? attention(x, y, w, {.mask = [&](Index, Index, Index i, Index j) { return visible(i, j); }})
                           : composed(z, x, y, w, {.visible = at});
    Tensors out = grad(o, cast(g, in), {x, y, w});
    out.push_back(o);
    return out;
  };
  const Tensors exact = results(DType::f64, false), plain = results(dtype, false), flash = results(dtype, true);
  const char* names[] = {"dq", "dk", "dv", "o"};
  for (std::size_t n = 0; n < 4; ++n) {
    const Values e = exact[n].to_host<double>(), p = plain[n].to_host<double>(), f = flash[n].to_host<double>();
    double plain_error = 0, flash_error = 0, largest = 1;
    for (std::size_t i = 0; i < e.size(); ++i) {
      plain_error = std::max(plain_error, std::abs(p[i] - e[i]));
      flash_error = std::max(flash_error, std::abs(f[i] - e[i]));
      largest = std::max(largest, std::abs(e[i]));
    }
    // Of small sizes both errors are a rounding or none; in fp32 the composed form's are those of the BLAS, which depend on how
    // wide the processor's vectors are: sums in sixteen parts err less than sums in eight.
    const double rounding = largest * (dtype == DType::bf16 ? 0x1p-9 : 0x1p-20);
    EXPECT_LE(flash_error, std::max(2 * plain_error, rounding)) << names[n] << ", " << z.text() << ", " << name_of(dtype);
  }
}

constexpr Place kFar = 1 << 20;
const PrecisionCase kPrecise[] = {
    {{2, 1, 1, 2, 1, 16, 16}, true, kFar},      {{1, 97, 97, 4, 2, 32, 32}, true, kFar},
    {{1, 97, 97, 2, 1, 256, 256}, false, kFar}, {{1, 257, 257, 2, 2, 64, 64}, true, kFar},
    {{1, 257, 257, 2, 1, 40, 80}, true, 64},    {{1, 97, 257, 2, 1, 24, 24}, true, kFar},
    {{1, 257, 97, 1, 1, 48, 16}, false, kFar},  {{1, 97, 97, 5, 1, 136, 16}, false, 33},
};
const PrecisionCase kPreciseLong[] = {
    {{1, 1025, 1025, 2, 1, 64, 64}, true, kFar},
    {{1, 1025, 1025, 2, 2, 128, 128}, false, kFar},
    {{1, 1025, 1025, 2, 1, 80, 160}, true, 257},
    {{1, 257, 1025, 4, 2, 96, 96}, true, kFar},
};

TEST(Attention, IsAsPreciseAsTheComposedForm) {
  for (const PrecisionCase& c : kPrecise)
    for (const DType dtype : {DType::bf16, DType::f32}) expect_precise(c, dtype);
}
TEST(SlowAttention, IsAsPreciseAsTheComposedFormWhenLong) {
  for (const PrecisionCase& c : kPreciseLong)
    for (const DType dtype : {DType::bf16, DType::f32}) expect_precise(c, dtype);
}
TEST(SlowAttention, IsAsPreciseAsTheComposedFormForEveryHeadSize) {
  for (Place d = 16; d <= 256; d += 8)
    for (const DType dtype : {DType::bf16, DType::f32}) expect_precise({{1, 97, 97, 2, 1, d, d}, true, kFar}, dtype);
}

// ---- mistakes ---------------------------------------------------------------------------------------------------------------

TEST(Attention, RefusesShapesThatDoNotFit) {
  const Tensor q = zeros({2, 5, 4, 8}), k = zeros({2, 5, 2, 8}), v = zeros({2, 5, 2, 6});
  const auto refused = [](const std::vector<std::string>& words, const std::function<void()>& f) {
    std::vector<std::string> all = words;
    all.insert(all.end(), {"attention: ", "test_attention.cpp", "hint: "});
    expect_error(ErrorKind::usage, all, f);
  };
  refused({"not (batch, time, heads, features)", "(2, 5, 32)"}, [&] { attention(zeros({2, 5, 32}), k, v); });
  refused({"different batches", "(3, 5, 2, 8)"}, [&] { attention(q, zeros({3, 5, 2, 8}), zeros({3, 5, 2, 6})); });
  refused({"the features of q and k do not fit", "(2, 5, 2, 7)"}, [&] { attention(q, zeros({2, 5, 2, 7}), v); });
  refused({"there are no heads", "(2, 5, 0, 8)"}, [&] { attention(zeros({2, 5, 0, 8}), k, v); });
  refused({"there are no heads", "(2, 5, 0, 8)"}, [&] { attention(q, zeros({2, 5, 0, 8}), zeros({2, 5, 0, 6})); });
  refused({"do not divide into the groups", "4 heads, 3 groups"}, [&] {
    attention(q, zeros({2, 5, 3, 8}), zeros({2, 5, 3, 6}));
  });
  refused({"v does not fit k", "(2, 4, 2, 6)"}, [&] { attention(q, k, zeros({2, 4, 2, 6})); });
  refused({"v does not fit k", "(2, 5, 4, 6)"}, [&] { attention(q, k, zeros({2, 5, 4, 6})); });
  refused({"v is absent"}, [&] { attention(q, k, Tensor{}); });
  refused({"q is not real"}, [&] { attention(cast(q, DType::i32), k, v); });
  refused({"some operands are f64 and some are not"}, [&] { attention(q, k, cast(v, DType::f64)); });
  refused({"the scale is not finite", "nan"}, [&] { attention(q, k, v, {.scale = kNan}); });
  refused({"segments must be integers"}, [&] { attention(q, k, v, {.segments = zeros({2, 5})}); });
  refused({"segments do not fit q and k", "(2, 4)"}, [&] { attention(q, k, v, {.segments = zeros({2, 4}, DType::i32)}); });
  refused({"segments do not fit q and k"}, [&] {
    attention(q, zeros({2, 6, 2, 8}), zeros({2, 6, 2, 6}), {.segments = zeros({2, 5}, DType::i32)});
  });
  const auto swap = [](Expr x, Expr y) { return Pair{y, x}; };
  refused({"odd number of features", "7 features"}, [&] {
    attention(zeros({2, 5, 4, 7}), zeros({2, 5, 2, 7}), v, {.rotate = swap});
  });
}

// What a hole gives, and what it may read.
TEST(Attention, RefusesHolesThatDoNotKeepTheirContract) {
  const Tensor q = zeros({2, 5, 4, 8}), k = zeros({2, 5, 2, 8}), v = zeros({2, 5, 2, 6}), bias = zeros({4, 3});
  const auto refused = [](const std::vector<std::string>& words, const std::function<void()>& f) {
    std::vector<std::string> all = words;
    all.insert(all.end(), {"attention: ", "test_attention.cpp", "hint: "});
    expect_error(ErrorKind::usage, all, f);
  };
  refused({"the mask is real, not boolean", "compare it: s > 0"},
          [&] { attention(q, k, v, {.mask = [](Index, Index, Index i, Index) { return to_real(i); }}); });
  refused({"the mask is an integer, not boolean"},
          [&] { attention(q, k, v, {.causal = true, .mask = [](Index, Index, Index i, Index j) { return i - j; }}); });
  refused({"the score is boolean"}, [&] { attention(q, k, v, {.score = [](Expr s) { return s > 0; }}); });
  refused({"the rotation is not linear"}, [&] {
    attention(q, k, v, {.rotate = [](Expr x, Expr y) { return Pair{x * y, y}; }});
  });
  refused({"hole 'score' indexes a tensor outside of it", "b 0, h 0, i 4, j 0", "axis 1 has 3 places"},
          [&] { attention(q, k, v, {.score = [&](Expr s, Index, Index h, Index i, Index) { return s + bias(h, i); }}); });
  refused({"index 4 does not exist", "(b, h, i, j)"},
          [&] { attention(q, k, v, {.score = [](Expr s) { return s + to_real(expr::index(4)); }}); });
}

// At a place that is seen, a subscript outside is an error of the kernel, if the mask leaves it unknown before.
TEST(Attention, ASubscriptThatLeavesItsTensorWhereSomethingIsSeen) {
  const Sizes z{1, 9, 9, 2, 1, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v(), bias = draw({2, 7}, 7);
  const auto options = [&](Place window) {
    return AttentionOptions{.score = [&](Expr s, Index, Index h, Index i, Index j) { return s + bias(h, i - j); },
                            .mask = [=](Index, Index, Index i, Index j) { return i >= j && i - j < Index(window); }};
  };
  const auto check = [&](const auto& call) {
    call(7).template to_host<double>();
    expect_error(ErrorKind::usage,
                 {"a subscript in a hole is outside of its tensor", "subscript 7 of axis 1, which has 7 places"},
                 [&] { call(8).template to_host<double>(); });
  };
  check([&](Place window) { return attention(q, k, v, options(window)); });
  check([&](Place window) { return attention_map(q, k, options(window)); });
}

TEST(Attention, RefusesGradientsThatNeedAllPairs) {
  const Sizes z{1, 5, 5, 4, 2, 8, 8};
  const Tensor q = z.q(), k = z.k(), v = z.v();
  Param full({4, 5, 5});
  const auto by_pair = [](const auto& x) { return [&](Expr s, Index, Index h, Index i, Index j) { return s + x(h, i, j); }; };
  const auto refused = [](const std::vector<std::string>& words, const std::function<void()>& f) {
    std::vector<std::string> all = words;
    all.insert(all.end(), {"attention: ", "test_attention.cpp", "hint: "});
    expect_error(ErrorKind::usage, all, f);
  };
  refused({"the score gives no gradient to what it captures", "(4, 5, 5), is indexed by (h, i, j)", "index it by i - j"},
          [&] { run([&] { return attention(q, k, v, {.score = by_pair(full)}); }); });
  refused({"the mask gives no gradient to what it captures", "detach() it"}, [&] {
    run([&] { return attention(q, k, v, {.mask = [&](Index, Index h, Index i, Index j) { return full(h, i, j) > 0; }}); });
  });
  refused({"the weight gives no gradient to what it captures", "detach() it"}, [&] {
    run([&] { return attention(q, k, v, {.weight = [&](Index, Index h, Index i, Index j) { return full(h, i, j); }}); });
  });
  refused({"the rotate gives no gradient to what it captures", "detach() it"}, [&] {
    run([&] {
      return attention(q, k, v, {.rotate = [&](Expr x, Expr y, Index, Index, Index t, Index p) {
                         return Pair{x * full(0, t, p), y};
                       }});
    });
  });
  // Without a gradient it may be read.
  const Tensor fixed = draw({4, 5, 5}, 7);
  const Sizes& sizes = z;
  const Capture pairs{"", nullptr, nullptr, [](const Sizes&, Place, Place h, Place i, Place j) { return (h * 5 + i) * 5 + j; }};
  expect_near(attention(q, k, v, {.score = by_pair(fixed)}),
              composed(z, q, k, v, {.score = [&](const Tensor& s) { return s + read_everywhere(sizes, pairs, fixed); }}), 1e-12,
              "a bias of all pairs");
}

}  // namespace
}  // namespace weft
