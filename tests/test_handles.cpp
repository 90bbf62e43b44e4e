// Handles that hold nothing, or were moved from, and shapes that no tensor can have: every public call on them is an error that
// names the caller's line, or works; none crashes.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tests/expect_error.h"
#include "tools/weft.h"

namespace weft {
namespace {

struct Call {
  const char* name;
  std::function<void()> make;
};

// All are usage errors whose place is a line of this file.
void expect_errors(const std::vector<std::string>& words, const std::vector<Call>& calls) {
  std::vector<std::string> all = words;
  all.push_back("at test_handles.cpp:");
  for (const Call& call : calls) {
    SCOPED_TRACE(call.name);
    expect_error(ErrorKind::usage, all, call.make);
    expect_error(ErrorKind::usage, all, [&] { run([&] { call.make(); }); });
  }
}

TEST(AbsentHandles, EveryCallOnATensorIsAnError) {
  const Tensor absent;
  EXPECT_FALSE(absent);
  EXPECT_FALSE(absent.dead());
  expect_errors({"an absent tensor was used", "hint: "}, {
                                                             {"shape", [&] { absent.shape(); }},
                                                             {"dim", [&] { absent.dim(0); }},
                                                             {"rank", [&] { absent.rank(); }},
                                                             {"numel", [&] { absent.numel(); }},
                                                             {"dtype", [&] { absent.dtype(); }},
                                                             {"requires_grad", [&] { absent.requires_grad(); }},
                                                             {"node", [&] { absent.node(); }},
                                                             {"item", [&] { absent.item(); }},
                                                             {"an op", [&] { exp(absent); }},
                                                             {"an op of two", [&] { ones({2}) + absent; }},
                                                             {"a view", [&] { reshape(absent, {1}); }},
                                                             {"a sum", [&] { sum(absent); }},
                                                             {"a concat", [&] { concat({absent}, 0); }},
                                                             {"an output", [&] { output_of(absent, 0); }},
                                                             {"the shape of an argument", [&] { Arg(absent).shape(); }},
                                                             {"the dtype of an argument", [&] { Arg(absent).dtype(); }},
                                                             {"grad by it", [&] { grad(sum(ones({2})), {absent}); }},
                                                         });
  expect_errors({"absent"}, {
                                {"an element", [&] { absent(expr::index(0)); }},
                                {"a product", [&] { matmul(absent, absent); }},
                                {"an embedding", [&] { embedding(absent, absent); }},
                                {"backward", [&] { backward(absent); }},
                                {"grad of it", [&] { grad(absent, {ones({2})}); }},
                            });
  for (const auto& read : std::vector<std::function<void()>>{[&] { absent.to_host<float>(); },
                                                             [&] { absent.to_host<double>(); }, [&] { absent.bytes(); }})
    expect_error(ErrorKind::usage, {"an absent tensor was used", "at test_handles.cpp:"}, read);
}

TEST(AbsentHandles, EveryCallOnAStateIsAnError) {
  const State state;
  State writable;
  EXPECT_FALSE(state);
  EXPECT_EQ(state.impl(), nullptr);
  expect_errors({"an absent State or Param was used", "hint: "},
                {
                    {"shape", [&] { state.shape(); }},
                    {"dtype", [&] { state.dtype(); }},
                    {"name", [&] { state.name(); }},
                    {"read", [&] { state.read(); }},
                    {"an element", [&] { state(expr::index(0)); }},
                    {"to_host", [&] { state.to_host<float>(); }},
                    {"set", [&] { writable.set<float>({1}); }},
                    {"bytes", [&] { state.bytes(); }},
                    {"set_bytes", [&] { writable.set_bytes("1"); }},
                    {"an op", [&] { exp(state); }},
                    {"assign", [&] { assign(state, ones({1})); }},
                    {"assign_at", [&] { assign_at(state, Scalar(0), ones({1})); }},
                    {"initialise", [&] { initialise(state, init::normal(1), 0, "w"); }},
                });
}

TEST(AbsentHandles, EveryCallOnAParamIsAnError) {
  const Param absent;
  Param writable;
  expect_errors({"an absent State or Param was used"},
                {
                    {"shape", [&] { absent.shape(); }},
                    {"trainable", [&] { absent.trainable(); }},
                    {"set_trainable", [&] { writable.set_trainable(false); }},
                    {"decay", [&] { absent.decay(); }},
                    {"set_decay", [&] { writable.set_decay(false); }},
                    {"has_gradient", [&] { absent.has_gradient(); }},
                    {"gradient", [&] { absent.gradient<float>(); }},
                    {"zero_grad", [&] { writable.zero_grad(); }},
                    {"take_gradient", [&] { take_gradient(absent); }},
                    {"of a layer without a bias", [] { Linear(2, 2, {.bias = false}).bias().shape(); }},
                    {"an optimizer", [&] { AdamW opt({absent}); }},
                });
}

struct Holder : Layer<Holder> {
  Param param;
  State state;
  Tensor forward(const Tensor& x) { return x; }
  void add_param() { add("w", param); }
  void add_state() { add("s", state); }
};

TEST(AbsentHandles, AreNotRegistered) {
  Holder holder;
  expect_errors({"cannot be registered"}, {{"param", [&] { holder.add_param(); }}, {"state", [&] { holder.add_state(); }}});
  EXPECT_TRUE(holder.parameters().empty());
}

TEST(MovedHandles, ATensorIsAbsentTheOthersAreWhatTheyWere) {
  Tensor t = ones({2});
  const Tensor moved_tensor = std::move(t);
  EXPECT_EQ(moved_tensor.numel(), 2);
  expect_errors({"absent"}, {{"shape", [&] { t.shape(); }}, {"an op", [&] { t + 1.0; }}});
  t = ones({3});
  EXPECT_EQ(t.numel(), 3);

  Scalar scalar(3);
  const Scalar moved_scalar = std::move(scalar);
  scalar.set(4);
  EXPECT_EQ(scalar.value(), 4);
  EXPECT_EQ(moved_scalar.value(), 4) << "handles of one number";
  EXPECT_EQ((Tensor(Arg(scalar)) + 1.0).item(), 5);

  State state({2});
  const State moved_state = std::move(state);
  EXPECT_EQ(state.shape(), (Shape{2}));
  Param param({2, 3});
  const Param moved_param = std::move(param);
  EXPECT_EQ(param.impl(), moved_param.impl());

  Rng generator(7);
  const Rng moved_generator = std::move(generator);
  const UseRng use(generator);
  EXPECT_EQ(Linear(2, 2).weight().shape(), (Shape{2, 2}));
}

TEST(MovedHandles, AModuleIsWhatItWas) {
  Linear linear = masked(Linear(3, 2));
  const Linear other = std::move(linear);
  Embedding table(5, 3);
  const Embedding other_table = std::move(table);
  Conv1d conv(3, 2);
  const Conv1d other_conv = std::move(conv);
  RMSNorm rms(3);
  const RMSNorm other_rms = std::move(rms);
  LayerNorm norm(3);
  const LayerNorm other_norm = std::move(norm);
  Dropout drop(0.5);
  const Dropout other_drop = std::move(drop);
  GumbelMask mask = *linear.mask();
  const GumbelMask other_mask = std::move(mask);
  Mamba model({.vocab = 8, .width = 8, .layers = 2, .state = 2});
  Mamba other_model = std::move(model);
  for (Module* m : std::initializer_list<Module*>{&linear, &table, &conv, &rms, &norm, &drop, &mask, &model}) {
    m->train(false);
    EXPECT_FALSE(m->training());
    EXPECT_EQ(m->parameter_count(), std::int64_t(m->parameter_count()));
    m->set_trainable(true);
    m->initialise();
    m->load_state_dict(m->state_dict());
    EXPECT_EQ(m->named_states().size(), 0u);
    EXPECT_EQ(m->named_parameters().size(), m->parameters().size());
  }
  EXPECT_EQ(linear.weight().impl(), other.weight().impl());
  EXPECT_TRUE(linear.mask());
  EXPECT_EQ(linear.parts<Linear>().size(), 0u);
  EXPECT_GE(mask.expected_sparsity(), 0);
  EXPECT_EQ(run([&] { return mask.sample(); }).shape(), (Shape{2, 3}));
  const Tensor ids = Tensor::from<std::int64_t>({1, 2}, {1, 2});
  EXPECT_EQ(run([&] { return drop(norm(rms(conv(table(ids))))); }).shape(), (Shape{1, 2, 3}));
  EXPECT_EQ(run([&] { return linear(ones({1, 3})); }).shape(), (Shape{1, 2}));
  EXPECT_EQ(run([&] { return model(ids); }).to_host<float>(), run([&] { return other_model(ids); }).to_host<float>());
  EXPECT_EQ(model.make_cache(1)->batch, 1);
  expect_errors({"there is no such layer", "layer 2, the model has 2"}, {{"block", [&] { model.block(2); }}});
}

TEST(MovedHandles, AnOptimizerIsWhatItWas) {
  Param w({2});
  AdamW opt({w});
  EXPECT_FALSE(opt.grad_norm()) << "before the first step";
  AdamW other = std::move(opt);
  run([&] {
    backward(sum(square(w + 1.0)));
    opt.step();
  });
  EXPECT_EQ(opt.step_count(), 1);
  EXPECT_EQ(other.step_count(), 1);
  opt.set_lr(0.5);
  EXPECT_EQ(opt.lr(), 0.5);
  opt.zero_grad();
  EXPECT_EQ(opt.bad_step(), 0);
  opt.clear_bad_step();
  opt.load_state_dict(opt.state_dict());
}

TEST(MovedHandles, ATokenizerIsWhatItWas) {
  Tokenizer bytes = Tokenizer::bytes();
  const Tokenizer other = std::move(bytes);
  EXPECT_EQ(bytes.encode("ab"), other.encode("ab"));
  EXPECT_EQ(bytes.vocabulary(), 256);
}

TEST(Handles, AreMadeFromShapesAlone) {
  EXPECT_FALSE((std::is_constructible_v<Tensor, int, int>)) << "Tensor x(2, 3) has no shape of two sizes";
  EXPECT_FALSE((std::is_constructible_v<Tensor, int>));
  EXPECT_FALSE((std::is_constructible_v<Tensor, std::nullptr_t>));
  EXPECT_FALSE((std::is_constructible_v<Shape, int, int>));
  EXPECT_FALSE((std::is_constructible_v<Shape, std::nullptr_t, int>));
}

TEST(ImpossibleShapes, AreErrorsWhereverOneIsGiven) {
  const std::int64_t big = std::int64_t(1) << 30;
  struct Bad {
    Shape shape;
    const char* word;
  };
  for (const Bad& bad :
       {Bad{{-2, -3}, "a size is negative"}, Bad{{2, -1}, "a size is negative"}, Bad{{-1, 0}, "a size is negative"},
        Bad{{big, big, big}, "too many elements"},  // 2^90, which is 0 in 64 bits
        Bad{{big, big}, "too many elements"},       // whose bytes do not fit
        Bad{{big, big, big, 0}, "too many elements"}})
    expect_errors({bad.word, to_string(bad.shape)},
                  {
                      {"ones", [&] { ones(bad.shape); }},
                      {"zeros", [&] { zeros(bad.shape, DType::i64); }},
                      {"full", [&] { full(bad.shape, 2); }},
                      {"uniform", [&] { uniform(bad.shape); }},
                      {"normal", [&] { normal(bad.shape); }},
                      {"State", [&] { State s(bad.shape); }},
                      {"Param", [&] { Param p(bad.shape); }},
                      {"from", [&] { Tensor::from<float>(std::vector<float>(6), bad.shape); }},
                      {"from_bytes", [&] { Tensor::from_bytes("", DType::f32, bad.shape); }},
                  });
  expect_errors({"negative"}, {{"expand", [] { expand(ones({1, 4}), {-1, 4}); }}});
  expect_errors({"too many elements"}, {
                                           {"an outer product",
                                            [&] {
                                              expand(ones({1}), {big, 1}) * expand(ones({1}), {1, big});
                                            }},
                                           {"expand",
                                            [&] {
                                              expand(ones({1}), {big, big});
                                            }},
                                           {"pad",
                                            [&] {
                                              pad(ones({1, 1}), 0, std::numeric_limits<std::int64_t>::max() - 1, 0);
                                            }},
                                           {"a matmul",
                                            [&] {
                                              matmul(expand(ones({1, 1}), {big, 1}), expand(ones({1, 1}), {1, big}));
                                            }},
                                           {"scatter_sum", [&] { scatter_sum(ones({1}), zeros({1}, DType::i64), big * big); }},
                                           {"a layer", [&] { Linear(big, big); }},
                                       });
  expect_errors({"sizes must be positive"}, {
                                                {"Linear", [] { Linear(2, 0); }},
                                                {"Conv1d", [] { Conv1d(-1, 2); }},
                                                {"Embedding", [] { Embedding(0, 2); }},
                                                {"RMSNorm", [] { RMSNorm(0); }},
                                                {"LayerNorm", [] { LayerNorm(-4); }},
                                            });
  expect_error(ErrorKind::usage, {"more elements than 64 bits can count"}, [&] { Shape({big, big, big}).numel(); });
}

TEST(Axes, ThatATensorHasNotAreErrors) {
  const Tensor a = ones({2, 3});
  expect_errors({"no such axis", "axis 2 of (2, 3)"}, {
                                                          {"dim", [&] { a.dim(2); }},
                                                          {"sum", [&] { sum(a, {2}); }},
                                                          {"slice", [&] { slice(a, 2, 0, 1); }},
                                                          {"concat",
                                                           [&] {
                                                             concat({a, a}, 2);
                                                           }},
                                                      });
  expect_errors({"no such axis", "axis -3 of (2, 3)"}, {{"dim", [&] { a.dim(-3); }}, {"mean", [&] { mean(a, {0, -3}); }}});
  for (const int axis : {2, -3, 100})
    expect_error(ErrorKind::usage, {"shape: no such axis", "(2, 3)"}, [&] { a.shape()[axis]; });
  expect_error(ErrorKind::usage, {"shape: no such axis"}, [&] { a.shape().first(3); });
  expect_error(ErrorKind::usage, {"shape: no such axis"}, [&] { a.shape().last(-1); });
}

TEST(Axes, NamedTwiceAreAnErrorOfEveryReduction) {
  const Tensor a = ones({2, 3});
  expect_errors({"an axis is named twice", "(2, 3)", "hint: "}, {
                                                                    {"sum",
                                                                     [&] {
                                                                       sum(a, {0, 0});
                                                                     }},
                                                                    {"sum, from the end",
                                                                     [&] {
                                                                       sum(a, {1, -1});
                                                                     }},
                                                                    {"mean",
                                                                     [&] {
                                                                       mean(a, {0, -2});
                                                                     }},
                                                                    {"max",
                                                                     [&] {
                                                                       max(a, {0, 1, 0});
                                                                     }},
                                                                    {"logsumexp",
                                                                     [&] {
                                                                       logsumexp(a, {1, 1});
                                                                     }},
                                                                    {"softmax",
                                                                     [&] {
                                                                       softmax(a, {-1, 1});
                                                                     }},
                                                                    {"log_softmax",
                                                                     [&] {
                                                                       log_softmax(a, {0, 0});
                                                                     }},
                                                                });
}

TEST(Precision, F64DoesNotMeetF32InAProduct) {
  const Tensor wide = ones({2, 4}, DType::f64), narrow = ones({4, 4}), x = ones({1, 2, 4}, DType::f64), n = ones({1, 2, 4});
  Linear linear(4, 3);
  RMSNorm rms(4);
  LayerNorm norm(4);
  Conv1d conv(4, 3);
  expect_errors({"some operands are f64 and some are not", "f64 (", "f32 (", "cast()"},
                {
                    {"Linear", [&] { linear(wide); }},
                    {"its product", [&] { linear.product(wide); }},
                    {"RMSNorm", [&] { rms(wide); }},
                    {"LayerNorm", [&] { norm(wide); }},
                    {"Conv1d", [&] { conv(x); }},
                    {"matmul", [&] { matmul(wide, narrow); }},
                    {"linear of f32 with f64 weights",
                     [&] {
                       linear(ones({2, 4})), weft::linear(narrow, wide);
                     }},
                    {"scan", [&] { scan(x, x, narrow, n, n); }},
                });
  EXPECT_EQ(weft::linear(ones({2, 4}, DType::bf16), linear.weight()).dtype(), DType::bf16) << "bf16 goes with f32";
  EXPECT_EQ((wide + 1.0 + ones({4})).dtype(), DType::f64) << "pointwise ops widen";
}

}  // namespace
}  // namespace weft
