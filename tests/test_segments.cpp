// Documents packed one after the other: every op of sequences, and whole models, give what they give for each document alone,
// in values, gradients and last states; ids that fall are refused; states carried from batch to batch meet one long text.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "autograd/backward.h"
#include "autograd/random.h"
#include "autograd/run.h"
#include "models/mamba.h"
#include "models/mamba2.h"
#include "models/transformer.h"
#include "ops/ops.h"
#include "tests/expect_error.h"
#include "tests/values.h"

namespace weft {
namespace {

// Lengths of the documents of each row; their sums are equal.
using Rows = std::vector<std::vector<std::int64_t>>;

std::int64_t length_of(const Rows& rows) { return std::accumulate(rows[0].begin(), rows[0].end(), std::int64_t(0)); }

// Ids need not be neighbours, and those of rows have nothing to do with each other.
Tensor ids_of(const Rows& rows) {
  std::vector<std::int64_t> ids;
  for (std::size_t r = 0; r < rows.size(); ++r)
    for (std::size_t d = 0; d < rows[r].size(); ++d)
      ids.insert(ids.end(), std::size_t(rows[r][d]), std::int64_t(3 * d + r) - 2);
  return Tensor::from(ids, {std::int64_t(rows.size()), length_of(rows)});
}

// An op on sequences: of tensors (b, t, ...) and shared ones, from a state, which may be absent.
struct Inputs {
  std::vector<Tensor> timed, shared;
  Tensor initial, *last;
  Documents segments;
};
using SequenceOp = std::function<Tensor(const Inputs&)>;

struct Sizes {
  std::vector<std::vector<std::int64_t>> timed;  // behind (b, t)
  std::vector<Shape> shared;
  std::vector<std::int64_t> state, out;  // behind b; behind (b, t)
};

Shape behind(std::vector<std::int64_t> leading, const std::vector<std::int64_t>& rest) {
  leading.insert(leading.end(), rest.begin(), rest.end());
  return Shape(std::span<const std::int64_t>(leading));
}

struct Outcome {
  std::vector<Values> timed;   // y, then the gradients of what is timed
  std::vector<Values> shared;  // gradients
  Values last, d_initial;
};

template <class S>
Outcome outcome(const SequenceOp& op, const Sizes& sizes, const std::vector<Values>& timed, const std::vector<Values>& shared,
                const Values& initial, const Values& w, const Values& w_last, std::int64_t b, std::int64_t t,
                const Tensor& ids) {
  const auto from = [](const Values& v, const Shape& s) { return Tensor::from(std::vector<S>(v.begin(), v.end()), s); };
  Inputs in;
  for (std::size_t i = 0; i < timed.size(); ++i) in.timed.push_back(from(timed[i], behind({b, t}, sizes.timed[i])));
  for (std::size_t i = 0; i < shared.size(); ++i) in.shared.push_back(from(shared[i], sizes.shared[i]));
  if (!initial.empty()) in.initial = from(initial, behind({b}, sizes.state));
  Tensor last;
  in.last = w_last.empty() ? nullptr : &last;
  in.segments = ids;
  const Tensor y = op(in);
  Tensor loss = sum(y * from(w, behind({b, t}, sizes.out)));
  if (in.last) loss = loss + sum(last * from(w_last, behind({b}, sizes.state)));
  std::vector<Arg> wrt(in.timed.begin(), in.timed.end());
  wrt.insert(wrt.end(), in.shared.begin(), in.shared.end());
  if (in.initial) wrt.emplace_back(in.initial);
  const std::vector<Tensor> d = grad(loss, wrt, Unused::zeros);
  Outcome result;
  result.timed.push_back(y.to_host<double>());
  for (std::size_t i = 0; i < timed.size(); ++i) result.timed.push_back(d[i].to_host<double>());
  for (std::size_t i = 0; i < shared.size(); ++i) result.shared.push_back(d[timed.size() + i].to_host<double>());
  if (in.last) result.last = last.to_host<double>();
  if (in.initial) result.d_initial = d.back().to_host<double>();
  return result;
}

void expect_near(const Values& got, const Values& expected, double tolerance, const std::string& what) {
  ASSERT_EQ(got.size(), expected.size()) << what;
  double largest = 1e-30;
  for (double e : expected) largest = std::max(largest, std::abs(e));
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], tolerance * largest) << what << " at " << i;
}

// Packed rows against each document alone; the initial state belongs to the first one of a row, the last to the last.
template <class S>
void check_packed(const SequenceOp& op, const Sizes& sizes, const Rows& rows, bool states) {
  const std::int64_t b = std::int64_t(rows.size()), t = length_of(rows);
  std::mt19937 random(11);
  std::normal_distribution<double> normal;
  const auto draw = [&](std::int64_t n) {
    Values v(static_cast<std::size_t>(n));
    for (double& e : v) e = double(float(normal(random)));
    return v;
  };
  const auto each = [](const std::vector<std::int64_t>& of) {
    return std::accumulate(of.begin(), of.end(), std::int64_t(1), std::multiplies<>());
  };
  std::vector<Values> timed, shared;
  for (const auto& of : sizes.timed) timed.push_back(draw(b * t * each(of)));
  for (const Shape& s : sizes.shared) shared.push_back(draw(s.numel()));
  const std::int64_t state = states ? each(sizes.state) : 0, out = each(sizes.out);
  const Values initial = draw(b * state), w = draw(b * t * out), w_last = draw(b * state);
  const Outcome packed = outcome<S>(op, sizes, timed, shared, initial, w, w_last, b, t, ids_of(rows));

  Outcome alone;
  alone.timed.resize(timed.size() + 1), alone.shared.resize(shared.size());
  const auto cut = [](const Values& v, std::int64_t begin, std::int64_t n) {
    return Values(v.begin() + begin, v.begin() + begin + n);
  };
  for (std::int64_t r = 0; r < b; ++r)
    for (std::int64_t d = 0, at = r * t; d < std::int64_t(rows[std::size_t(r)].size()); ++d) {
      const std::int64_t n = rows[std::size_t(r)][std::size_t(d)];
      const bool first = d == 0, end = d + 1 == std::int64_t(rows[std::size_t(r)].size());
      std::vector<Values> part;
      for (std::size_t i = 0; i < timed.size(); ++i)
        part.push_back(cut(timed[i], at * each(sizes.timed[i]), n * each(sizes.timed[i])));
      const Outcome one = outcome<S>(op, sizes, part, shared, first ? cut(initial, r * state, state) : Values(),
                                     cut(w, at * out, n * out), end ? cut(w_last, r * state, state) : Values(), 1, n, {});
      for (std::size_t i = 0; i < one.timed.size(); ++i)
        alone.timed[i].insert(alone.timed[i].end(), one.timed[i].begin(), one.timed[i].end());
      for (std::size_t i = 0; i < one.shared.size(); ++i) {
        alone.shared[i].resize(one.shared[i].size());
        for (std::size_t k = 0; k < one.shared[i].size(); ++k) alone.shared[i][k] += one.shared[i][k];
      }
      if (states && first) alone.d_initial.insert(alone.d_initial.end(), one.d_initial.begin(), one.d_initial.end());
      if (states && end) alone.last.insert(alone.last.end(), one.last.begin(), one.last.end());
      at += n;
    }
  const double tolerance = std::is_same_v<S, float> ? 1e-6 : 1e-13;
  for (std::size_t i = 0; i < alone.timed.size(); ++i)
    expect_near(packed.timed[i], alone.timed[i], tolerance, i ? "gradient " + std::to_string(i - 1) : "y");
  for (std::size_t i = 0; i < alone.shared.size(); ++i)
    expect_near(packed.shared[i], alone.shared[i], tolerance, "shared gradient " + std::to_string(i));
  expect_near(packed.last, alone.last, tolerance, "last");
  expect_near(packed.d_initial, alone.d_initial, tolerance, "d initial");
}

const Rows kShort = {{3, 1, 2, 7, 1}, {14}, {1, 1, 1, 11}};
const Rows kLong = {{130, 3, 1, 40, 26}, {64, 64, 72}, {1, 198, 1}};  // over the borders of chunks

void check_packed(const SequenceOp& op, const Sizes& sizes) {
  for (const Rows& rows : {kShort, kLong}) {
    if (device() == Device::emu && &rows == &kLong) continue;
    for (const bool states : {false, true}) {
      SCOPED_TRACE(testing::Message() << length_of(rows) << " steps, states " << states);
      check_packed<float>(op, sizes, rows, states);
      if (device() == Device::cpu) check_packed<double>(op, sizes, rows, states);
    }
  }
}

TEST(Segments, ConvolutionsSeeTheirDocumentAlone) {
  for (const std::int64_t width : {1, 2, 4, 9, 40}) {  // 40: one whose taps a GPU reads from memory
    SCOPED_TRACE(width);
    const std::int64_t d = 5;
    check_packed(
        [](const Inputs& in) {
          Tensor last;
          Conv1dOptions o{.out = gate(in.timed[1]), .initial = in.initial, .segments = in.segments};
          if (in.last) o.last = in.last;
          return conv1d(in.timed[0], in.shared[0], in.shared[1], o);
        },
        {{{d}, {d}}, {{d, width}, {d}}, {width - 1, d}, {d}});
  }
}

TEST(Segments, ScansSeeTheirDocumentAlone) {
  const std::int64_t i = 6, n = 4;
  check_packed(
      [](const Inputs& in) {
        return scan(in.timed[0], in.timed[1], -exp(in.shared[0]), in.timed[2], in.timed[3],
                    {.D = in.shared[1],
                     .delta = softplus_bias(in.shared[2]),
                     .out = gate(in.timed[4]),
                     .initial = in.initial,
                     .last = in.last,
                     .segments = in.segments});
      },
      {{{i}, {i}, {n}, {n}, {i}}, {{i, n}, {i}, {i}}, {i, n}, {i}});
  check_packed(
      [](const Inputs& in) {
        return scan(in.timed[0], exp(in.timed[1]), -exp(in.shared[0]), in.timed[2], in.timed[3],
                    {.initial = in.initial, .last = in.last, .segments = in.segments});
      },
      {{{i}, {i}, {2, n}, {2, n}}, {{i, n}}, {i, n}, {i}});
}

TEST(Segments, SsdsSeeTheirDocumentAlone) {
  const std::int64_t h = 4, p = 3, g = 2, n = 5;
  for (const std::int64_t chunk : {4, 64, -16}) {
    if (device() == Device::emu && chunk != 4) continue;
    SCOPED_TRACE(chunk);
    check_packed(
        [&](const Inputs& in) {
          return ssd(in.timed[0], in.timed[1], -exp(in.shared[0]), in.timed[2], in.timed[3],
                     {.D = in.shared[1],
                      .dt = softplus_bias(in.shared[2]),
                      .out = gate(in.timed[4]),
                      .initial = in.initial,
                      .last = in.last,
                      .segments = in.segments,
                      .chunk = std::abs(chunk),
                      .plain = chunk < 0});
        },
        {{{h, p}, {h}, {g, n}, {g, n}, {h, p}}, {{h}, {h}, {h}}, {h, p, n}, {h, p}});
  }
}

TEST(Segments, SecondDerivativesOfAConvolutionStayInTheDocument) {
  const std::int64_t t = 9, d = 2;
  const auto slope = [&](double by) {
    Values v = gen(std::size_t(t * d), 1);
    v[5] += by;
    const Tensor x = Tensor::from(v, {1, t, d}), w = Tensor::from(gen(std::size_t(d * 4), 2), {d, 4}),
                 initial = Tensor::from(gen(std::size_t(3 * d), 3), {1, 3, d});
    Tensor last;
    const Tensor y = conv1d(x, w, Tensor{}, {.silu = true, .initial = initial, .last = &last, .segments = ids_of({{4, 2, 3}})});
    const std::vector<Tensor> first = grad(sum(square(y)) + sum(square(last)), {x, w, initial});
    Tensor penalty = sum(square(first[0])) + sum(square(first[1])) + sum(square(first[2]));
    const Tensor second = grad(penalty, {x})[0];
    return std::pair{penalty.item(), second.to_host<double>()[5]};
  };
  const double step = 1e-5;
  EXPECT_NEAR(slope(0).second, (slope(step).first - slope(-step).first) / (2 * step), 1e-5 * std::abs(slope(0).second));
}

TEST(Segments, MistakesAreNamed) {
  const auto ids = [](std::vector<std::int64_t> v) { return Tensor::from(v, {2, std::int64_t(v.size()) / 2}); };
  const Tensor x = zeros({2, 3, 4}), w = zeros({4, 2});
  expect_error(ErrorKind::usage, {"segments: an id is less than the one before it", "6 after 7"}, [&] {
    run([&] { return conv1d(x, w, Tensor{}, {.segments = Documents(ids({0, 0, 1, 5, 7, 6}))}); }).to_host<float>();
  });
  EXPECT_NO_THROW(run([&] {
                    return conv1d(x, w, Tensor{}, {.segments = Documents(ids({7, 7, 8, 0, 0, 0}))});
                  }).to_host<float>());
  expect_error(ErrorKind::usage, {"conv1d: the segments do not fit", "segments (2, 2)", "(2, 3, 4)"}, [&] {
    conv1d(x, w, Tensor{}, {.segments = Documents(ids({0, 0, 0, 0}))});
  });
  expect_error(ErrorKind::usage, {"segments: ids must be integers"}, [&] { Documents{zeros({2, 3})}; });
  expect_error(ErrorKind::usage, {"segments: ids are not (batch, time)", "(3,)"}, [&] { Documents{zeros({3}, DType::i64)}; });
  expect_error(ErrorKind::usage, {"scan: the segments do not fit"}, [&] {
    scan(x, x, zeros({4, 2}), zeros({2, 3, 2}), zeros({2, 3, 2}), {.segments = Documents(ids({0, 0}))});
  });
  expect_error(ErrorKind::usage, {"ssd: the segments do not fit"}, [&] {
    ssd(zeros({2, 3, 2, 2}), zeros({2, 3, 2}), zeros({2}), zeros({2, 3, 1, 2}), zeros({2, 3, 1, 2}),
        {.segments = Documents(ids({0, 0}))});
  });
}

// ---- models -----------------------------------------------------------------------------------------------------------------

std::vector<std::int64_t> some_ids(std::int64_t n, std::int64_t vocab) {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = 0; i < n; ++i) ids.push_back((i * 17 + i * i * 5 + 3) % vocab);
  return ids;
}

struct Trained {
  Values logits;
  double loss;
  std::vector<Values> gradients;
};

// Of the mean loss over `all` tokens.
Trained trained(LanguageModel& model, const std::vector<std::int64_t>& ids, std::int64_t b, const Tensor& segments,
                double all) {
  const Tensor in = Tensor::from(ids, {b, std::int64_t(ids.size()) / b});
  const auto [logits, loss] = run([&] {
    const Tensor y = segments ? model.flow(in, {.segments = segments}) : model(in);
    const Tensor total = cross_entropy(y, in, {.reduction = Reduction::sum}) * (1 / all);
    backward(total);
    return std::pair(y, total);
  });
  Trained result{logits.to_host<double>(), loss.item(), {}};
  for (Param p : model.parameters()) result.gradients.push_back(p.gradient<double>()), p.zero_grad();
  return result;
}

void check_model(LanguageModel& model, double tolerance) {
  const Rows rows = {{3, 1, 6}, {10}, {1, 2, 7}};
  const std::int64_t t = length_of(rows), b = std::int64_t(rows.size());
  const auto ids = some_ids(b * t, model.vocab());
  const Trained packed = trained(model, ids, b, ids_of(rows), double(b * t));
  Values logits;
  double loss = 0;
  std::vector<Values> gradients(packed.gradients.size());
  std::int64_t at = 0;
  for (const auto& row : rows)
    for (const std::int64_t n : row) {
      const Trained one = trained(model, {ids.begin() + at, ids.begin() + at + n}, 1, {}, double(b * t));
      logits.insert(logits.end(), one.logits.begin(), one.logits.end());
      loss += one.loss;
      for (std::size_t i = 0; i < gradients.size(); ++i) {
        gradients[i].resize(one.gradients[i].size());
        for (std::size_t k = 0; k < gradients[i].size(); ++k) gradients[i][k] += one.gradients[i][k];
      }
      at += n;
    }
  expect_near(packed.logits, logits, tolerance, "logits");
  EXPECT_NEAR(packed.loss, loss, tolerance * loss);
  for (std::size_t i = 0; i < gradients.size(); ++i)
    expect_near(packed.gradients[i], gradients[i], 10 * tolerance, model.named_parameters()[i].name);
}

TEST(Segments, ModelsReadDocumentsAsAlone) {
  seed(3);
  Mamba mamba({.vocab = 40, .width = 12, .layers = 2, .state = 4});
  check_model(mamba, 2e-6);
  Mamba2Config c{.vocab = 40, .width = 12, .layers = 2, .state = 8, .head = 6};
  c.groups = 2, c.recompute = true;
  Mamba2 mamba2(c);
  check_model(mamba2, 2e-6);
  Transformer transformer({.vocab = 40, .width = 12, .layers = 2, .heads = 2});
  check_model(transformer, 5e-6);
  seed(0);
}

TEST(Segments, WhoCannotSaysSo) {
  seed(3);
  const Tensor ids = Tensor::from(some_ids(6, 20), {2, 3}), segments = Tensor::from(std::vector<std::int64_t>(6, 0), {2, 3});
  const auto study = model_family("hymba-study").from_options({}, {.size = 20}, {});
  expect_error(ErrorKind::usage, {"packed documents would see each other", "meta tokens"},
               [&] { study->flow(ids, {.segments = segments}); });
  Transformer transformer({.vocab = 20, .width = 12, .layers = 1, .heads = 2});
  const auto cache = transformer.make_cache(2);
  expect_error(ErrorKind::usage, {"carries no states from batch to batch", "Transformer"},
               [&] { transformer.flow(ids, {.carried = cache.get()}); });
  Mamba2 mamba2({.vocab = 20, .width = 8, .layers = 1, .state = 4, .head = 4});
  const auto three = mamba2.make_cache(3), two = mamba2.make_cache(2);
  expect_error(ErrorKind::usage, {"ids must be (batch of the cache", "cache batch 3"},
               [&] { mamba2.flow(ids, {.carried = three.get()}); });
  expect_error(ErrorKind::usage, {"whether rows go on must be one integer for each"},
               [&] { mamba2.flow(ids, {.carried = two.get(), .continues = zeros({3}, DType::i64)}); });
  expect_error(ErrorKind::usage, {"the cache belongs to another model"}, [&] { mamba2.flow(ids, {.carried = cache.get()}); });
  seed(0);
}

// ---- states carried from batch to batch -------------------------------------------------------------------------------------

template <class Model>
void check_carried(Model& model) {
  const std::int64_t b = 2, t = 5, windows = 3;
  const auto ids = some_ids(b * t * windows, model.vocab());
  const auto window = [&](std::int64_t first, std::int64_t n) {
    std::vector<std::int64_t> part;
    for (std::int64_t r = 0; r < b; ++r)
      part.insert(part.end(), ids.begin() + r * t * windows + first * t, ids.begin() + r * t * windows + (first + n) * t);
    return Tensor::from(part, {b, n * t});
  };
  const auto whole = run([&] { return model(window(0, windows)); }).template to_host<double>();
  const auto cache = model.make_cache(b);
  const std::size_t width = whole.size() / std::size_t(b * windows * t);
  for (std::int64_t k = 0; k < windows; ++k) {
    const Values part = run([&] { return model.flow(window(k, 1), {.carried = cache.get()}); }).template to_host<double>();
    for (std::int64_t r = 0; r < b; ++r) {
      const auto of = whole.begin() + std::ptrdiff_t(std::size_t((r * windows + k) * t) * width);
      const auto got = part.begin() + std::ptrdiff_t(std::size_t(r * t) * width);
      expect_near(Values(got, got + std::ptrdiff_t(std::size_t(t) * width)),
                  Values(of, of + std::ptrdiff_t(std::size_t(t) * width)), 2e-6, "window " + std::to_string(k));
    }
  }
  // Row 1 begins anew, row 0 goes on: as two windows and as one.
  const Tensor on = Tensor::from(std::vector<std::int64_t>{1, 0}, {b});
  run([&] { return model.flow(window(0, 1), {.carried = cache.get(), .continues = zeros({b}, DType::i64)}); });
  const Values mixed =
      run([&] { return model.flow(window(1, 1), {.carried = cache.get(), .continues = on}); }).template to_host<double>();
  const Values fresh = run([&] { return model(window(1, 1)); }).template to_host<double>();
  const auto half = std::ptrdiff_t(mixed.size() / 2);
  const auto after_one = whole.begin() + std::ptrdiff_t(std::size_t(t) * width);
  expect_near(Values(mixed.begin(), mixed.begin() + half), Values(after_one, after_one + half), 2e-6, "row 0");
  expect_near(Values(mixed.begin() + half, mixed.end()), Values(fresh.begin() + half, fresh.end()), 2e-6, "row 1");
}

TEST(CarriedStates, WindowsAreOneLongText) {
  seed(4);
  Mamba mamba({.vocab = 30, .width = 12, .layers = 2, .state = 4});
  check_carried(mamba);
  Mamba2 mamba2({.vocab = 30, .width = 12, .layers = 2, .state = 8, .head = 6});
  check_carried(mamba2);
  seed(0);
}

// Truncated backpropagation through time: the gradients of a window are those of its own tokens, from a state that is given.
TEST(CarriedStates, GradientsStopAtTheWindow) {
  const std::int64_t t = 6, d = 8;
  Mamba2Config c{.vocab = 30, .width = d, .layers = 1, .state = 4, .head = 8};
  c.dtype = DType::f64;
  seed(4);
  Mamba2 model(c);
  const Tensor first = Tensor::from(some_ids(t, 30), {1, t}), second = Tensor::from(some_ids(2 * t, 29), {2, t}),
               rest = slice(second, 0, 1, 2);
  const auto cache = model.make_cache(1);
  const auto gradients = [&] {
    std::vector<Values> all;
    for (Param p : model.parameters()) all.push_back(p.gradient<double>()), p.zero_grad();
    return all;
  };
  const auto loss = [&](const Tensor& ids, bool carried) {
    const Tensor y = carried ? model.flow(ids, {.carried = cache.get()}) : model(ids);
    return cross_entropy(y, ids);
  };
  run([&] { return model.flow(first, {.carried = cache.get()}); });
  run([&] {
    const Tensor l = loss(rest, true);
    backward(l);
    return l;
  });
  const std::vector<Values> got = gradients();
  run([&] {
    const Tensor l = loss(rest, false);
    backward(l);
    return l;
  });
  EXPECT_NE(got, gradients()) << "the state has a part in them";
  // By differences, with the state held.
  Param w = model.parameters()[1];
  const Values values = w.to_host<double>();
  double largest = 0;
  const double step = 1e-6;
  for (std::size_t i = 0; i < std::min<std::size_t>(values.size(), 6); ++i) {
    double side[2];
    for (const int s : {0, 1}) {
      w.set(values);
      run([&] { return model.flow(first, {.carried = cache.get(), .continues = zeros({1}, DType::i64)}); });
      Values moved = values;
      moved[i] += s ? step : -step;
      w.set(moved);
      side[s] = run([&] { return loss(rest, true); }).item();
    }
    w.set(values);
    EXPECT_NEAR(got[1][i], (side[1] - side[0]) / (2 * step), 1e-7) << i;
    largest = std::max(largest, std::abs(got[1][i]));
  }
  EXPECT_GT(largest, 1e-5);
  seed(0);
}

}  // namespace
}  // namespace weft
