// Modules, layers, initial values and masks.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <type_traits>

#include "jit/parallel.h"
#include "tests/expect_error.h"
#include "tests/temp_folder.h"
#include "tools/weft.h"

namespace weft {
namespace {

struct Mlp : Layer<Mlp> {
  Linear up, down;
  Mlp(std::int64_t d, std::int64_t h) : up(d, h), down(h, d) { add("up", up), add("down", down); }
  Tensor forward(const Tensor& x) { return down(silu(up(x))); }
};

struct Net : Layer<Net> {
  std::vector<Mlp> layers;
  RMSNorm norm{4};
  State steps{Shape{}, DType::i64};
  explicit Net(int n = 2) {
    for (int i = 0; i < n; ++i) layers.emplace_back(4, 6);
    for (int i = 0; i < n; ++i) add("layers." + std::to_string(i), layers[std::size_t(i)]);
    add("norm", norm);
    add("steps", steps);
  }
  Tensor forward(const Tensor& x) {
    Tensor y = x;
    for (Mlp& mlp : layers) y = y + mlp(y);
    return norm(y);
  }
};

std::vector<float> ramp(std::int64_t n, double scale = 0.1) {
  std::vector<float> v(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = float(scale * std::sin(0.37 * double(i + 1)));
  return v;
}

TEST(Module, NamesFollowTheTree) {
  Net net;
  std::vector<std::string> names;
  for (const NamedParam& p : net.named_parameters()) {
    names.push_back(p.name);
    EXPECT_EQ(p.name, p.param.name());
  }
  EXPECT_EQ(names, (std::vector<std::string>{"layers.0.up.weight", "layers.0.up.bias", "layers.0.down.weight",
                                             "layers.0.down.bias", "layers.1.up.weight", "layers.1.up.bias",
                                             "layers.1.down.weight", "layers.1.down.bias", "norm.weight"}));
  EXPECT_EQ(net.path(), "");
  EXPECT_EQ(net.layers[1].down.path(), "layers.1.down");
  EXPECT_EQ(net.named_states().at(0).name, "steps");
  EXPECT_EQ(net.parameter_count(), 2 * (4 * 6 + 6 + 6 * 4 + 4) + 4);
}

TEST(Module, MovesAndCopiesShareTheRegistry) {
  Net net;
  Net moved = std::move(net);
  EXPECT_EQ(moved.named_parameters().size(), 9u);
  moved.train(false);
  EXPECT_FALSE(moved.layers[0].up.training());
  const Tensor x = Tensor::from(ramp(8), {2, 4});
  EXPECT_EQ(run([&] { return moved(x); }).shape(), (Shape{2, 4}));
}

TEST(Module, ATiedParamIsListedOnceUnderItsFirstName) {
  struct Tied : Layer<Tied> {
    Param a{Shape{3}};
    Tied() { add("first", a), add("second", a); }
  } tied;
  ASSERT_EQ(tied.parameters().size(), 1u);
  EXPECT_EQ(tied.named_parameters()[0].name, "first");
  struct Outer : Layer<Outer> {
    Tied inner;
    Outer() { add("inner", inner); }
  } outer;
  EXPECT_EQ(outer.parameters()[0].name(), "inner.first");
}

TEST(Module, ANameRegisteredTwiceIsAnError) {
  struct Twice : Layer<Twice> {
    Param a{Shape{3}}, b{Shape{3}};
    Twice() { add("w", a), add("w", b); }
  };
  expect_error(ErrorKind::usage, {"registered twice: 'w'"}, [] { Twice t; });
}

TEST(Module, PartsAreFoundBelowItInOrderAndOnce) {
  struct Pair : Layer<Pair> {
    Linear left{2, 3};
    Embedding right{4, 2};
    Pair() { add("left", left), add("right", right); }
  };
  struct Both : Layer<Both> {
    Pair first, second;
    Both() { add("first", first), add("second", second), add("tied", first.left); }
  } both;
  both.second.right.mask({});
  both.second.left.mask({});
  both.first.left.mask({});  // of a handle, long after it was registered
  std::vector<std::string> names;
  for (const WeightedModule& layer : both.parts<WeightedModule>()) names.push_back(layer.path());
  EXPECT_EQ(names.size(), 4u);
  EXPECT_EQ(names[1], "first.right");
  EXPECT_EQ(both.parts<Linear>().size(), 2u);
  EXPECT_TRUE(both.parts<Linear>()[0].mask());
  names.clear();
  for (const GumbelMask& mask : both.parts<GumbelMask>()) names.push_back(mask.path());
  ASSERT_EQ(names.size(), 3u);
  EXPECT_EQ(names[1], "second.left.mask");
  EXPECT_EQ(names[2], "second.right.mask");
  EXPECT_TRUE(both.first.right.parts<GumbelMask>().empty());
}

TEST(Module, StateDictGoesThroughAFile) {
  seed(1);
  Net a;
  a.steps.set<std::int64_t>({7});
  seed(2);
  Net b;
  EXPECT_NE(a.parameters()[0].to_host<float>(), (b.initialise(), b.parameters()[0].to_host<float>()));
  const TempFolder folder;
  const auto file = folder / "model.safetensors";
  write_safetensors(file, a.state_dict());
  b.load_state_dict(read_safetensors(file));
  EXPECT_EQ(b.steps.to_host<std::int64_t>()[0], 7);
  for (std::size_t i = 0; i < 9; ++i) EXPECT_EQ(a.parameters()[i].to_host<float>(), b.parameters()[i].to_host<float>());
}

TEST(Module, LoadingListsAllProblemsAndChangesNothing) {
  Net net;
  const TensorMap good = net.state_dict();
  TensorMap bad = good;
  bad.erase("layers.0.up.weight");
  bad["layers.9.up.weight"] = bad["layers.1.up.weight"];
  bad["norm.weight"].shape = {2, 2};
  const std::vector<std::int64_t> ints(6);
  bad["layers.0.up.bias"] = HostTensor::from<std::int64_t>(DType::i64, {6}, ints);
  bad["layers.1.up.bias"].bytes.assign(24, std::byte(1));
  expect_error(ErrorKind::io,
               {"4 problems", "missing: layers.0.up.weight (6, 4)", "unexpected: layers.9.up.weight (6, 4)",
                "shape of norm.weight: the file has (2, 2), the model (4,)",
                "type of layers.0.up.bias: the file has i64, the model f32"},
               [&] { net.load_state_dict(bad); });
  EXPECT_EQ(net.state_dict().at("layers.1.up.bias").bytes, good.at("layers.1.up.bias").bytes);
}

TEST(Module, NamesAreRelativeToTheModuleThatIsAsked) {
  Net net;
  std::vector<std::string> names;
  for (const NamedParam& p : net.layers[1].named_parameters()) names.push_back(p.name);
  EXPECT_EQ(names, (std::vector<std::string>{"up.weight", "up.bias", "down.weight", "down.bias"}));
  EXPECT_EQ(net.layers[1].named_parameters()[0].param.name(), "layers.1.up.weight");  // in errors: as the root has it
  EXPECT_EQ(net.layers[1].down.state_dict().count("weight"), 1u);
  // What one layer has goes into another, and into a model of which it is not a part.
  net.layers[0].load_state_dict(net.layers[1].state_dict());
  EXPECT_EQ(net.state_dict().at("layers.0.up.weight").bytes, net.state_dict().at("layers.1.up.weight").bytes);
  const TensorMap alone = net.layers[0].state_dict();
  EXPECT_EQ(alone.size(), 4u);
  expect_error(ErrorKind::io, {"missing: up.weight (6, 4)", "unexpected: layers.0.up.weight"},
               [&] { net.layers[0].load_state_dict(net.state_dict()); });
}

// A module that two others have: each has its own names for it, and the first one's stay.
TEST(Module, ASecondParentRenamesNothing) {
  struct Holder : Layer<Holder> {
    Linear part;
    Holder(const Linear& shared, const char* name) : part(shared) { add(name, part); }
    Tensor forward(const Tensor& x) { return part(x); }
  };
  Linear shared(4, 4);
  Holder first(shared, "encoder");
  {
    Holder second(shared, "decoder");
    EXPECT_EQ(first.named_parameters()[0].name, "encoder.weight");
    EXPECT_EQ(second.named_parameters()[0].name, "decoder.weight");
    EXPECT_TRUE(first.state_dict().contains("encoder.weight"));
    EXPECT_TRUE(second.state_dict().contains("decoder.weight"));
    EXPECT_EQ(shared.path(), "encoder");
    EXPECT_EQ(shared.weight().name(), "encoder.weight");
  }
  Linear other(4, 4);
  { Holder gone(other, "gone"); }
  Holder stays(other, "stays");  // the first one is no more
  EXPECT_EQ(other.path(), "stays");
}

TEST(Module, ALoadThatIsNotStrictReports) {
  seed(3);
  Net a;
  TensorMap tensors = a.state_dict();
  tensors.erase("layers.0.up.weight");
  tensors["head.weight"] = tensors.at("norm.weight");
  seed(4);
  Net b;
  const LoadReport report = b.load_state_dict(tensors, {.strict = false});
  EXPECT_EQ(report.missing, (std::vector<std::string>{"layers.0.up.weight"}));
  EXPECT_EQ(report.unexpected, (std::vector<std::string>{"head.weight"}));
  EXPECT_EQ(b.state_dict().at("layers.1.up.weight").bytes, a.state_dict().at("layers.1.up.weight").bytes);
  seed(4);
  Net c;  // as b would have been: what is missing is drawn
  EXPECT_EQ(b.state_dict().at("layers.0.up.weight").bytes, c.state_dict().at("layers.0.up.weight").bytes);
  tensors["norm.weight"].shape = {2, 2};  // still an error
  expect_error(ErrorKind::io, {"1 problems", "shape of norm.weight"}, [&] { b.load_state_dict(tensors, {.strict = false}); });
  const LoadReport whole = b.load_state_dict(a.state_dict());
  EXPECT_TRUE(whole.missing.empty() && whole.unexpected.empty());
}

TEST(Module, TensorsWithoutBytesAreComparedAlone) {
  seed(3);
  Net a;
  const TensorMap whole = a.state_dict();
  TensorMap described = whole;
  for (auto& [name, tensor] : described) tensor.bytes.clear();
  EXPECT_TRUE(a.load_state_dict(described).missing.empty());
  for (const auto& [name, tensor] : a.state_dict()) EXPECT_EQ(tensor.bytes, whole.at(name).bytes) << name;
  described.at("norm.weight").shape = {5};
  described.erase("layers.0.up.weight");
  expect_error(ErrorKind::io, {"2 problems", "missing: layers.0.up.weight", "shape of norm.weight"},
               [&] { a.load_state_dict(described); });
  TensorMap some = whole;
  some.at("norm.weight").bytes.clear();
  expect_error(ErrorKind::usage, {"some of the tensors have no bytes", "1 of "}, [&] { a.load_state_dict(some); });
  some.at("norm.weight").bytes.resize(1);
  expect_error(ErrorKind::io, {"1 problems", "bytes of norm.weight: 1 for f32"}, [&] { a.load_state_dict(some); });
}

TEST(Module, TensorsAreRenamedByAFunction) {
  seed(3);
  Net a;
  TensorMap tensors;
  for (const auto& [name, tensor] : a.state_dict()) tensors["model." + name] = tensor;
  tensors["rotary.inv_freq"] = tensors.at("model.norm.weight");
  const auto rename = [](const std::string& name) { return name.starts_with("model.") ? name.substr(6) : ""; };
  seed(4);
  Net b;
  b.load_state_dict(tensors, {.rename = rename});
  EXPECT_EQ(b.state_dict().at("layers.0.up.weight").bytes, a.state_dict().at("layers.0.up.weight").bytes);
  tensors["model.extra"] = tensors.at("model.norm.weight");
  expect_error(ErrorKind::io, {"unexpected: model.extra (4,)"}, [&] { b.load_state_dict(tensors, {.rename = rename}); });
  tensors.erase("model.extra");
  const auto same = [](const std::string& name) { return name.ends_with("bias") ? "layers.0.up.bias" : name.substr(6); };
  expect_error(ErrorKind::io, {"two tensors are renamed to layers.0.up.bias", "model.layers.0.down.bias"},
               [&] { b.load_state_dict(tensors, {.strict = false, .rename = same}); });
}

TEST(Module, ErrorsNameTheModuleAndTheCallersLine) {
  Net net;
  const Tensor x = Tensor::from(ramp(10), {2, 5});
  expect_error(ErrorKind::usage, {"test_nn.cpp", "layers.0.up"}, [&] { run([&] { return net(x); }); });
}

TEST(Init, DtBiasHasTheCheckValues) {
  EXPECT_NEAR(dt_bias_value(0, 1e-3, 0.1, 1e-4), -6.907255, 5e-7);
  EXPECT_NEAR(dt_bias_value(0.5, 1e-3, 0.1, 1e-4), -4.600166, 5e-7);
  EXPECT_NEAR(dt_bias_value(1, 1e-3, 0.1, 1e-4), -2.252168, 5e-7);
  const Draws draws(3, "dt_proj.bias");
  const Initialiser bias = init::dt_bias();
  for (int i = 0; i < 1000; ++i) {
    const double step = std::log1p(std::exp(bias(draws, i)));
    EXPECT_GE(step, 1e-3 * (1 - 1e-12));
    EXPECT_LE(step, 0.1 * (1 + 1e-12));
  }
}

// ---- what was never added ---------------------------------------------------------------------------------------------------

struct Forgot : Layer<Forgot> {  // a layer
  Linear in{4, 4}, out{4, 4};
  Forgot() { add("in", in); }
  Tensor forward(const Tensor& x) { return out(in(x)); }
};
struct ForgotList : Layer<ForgotList> {
  std::vector<Linear> layers;
  ForgotList() {
    for (int i = 0; i < 3; ++i) layers.emplace_back(4, 4);
  }
  Tensor forward(const Tensor& x) {
    Tensor y = x;
    for (Linear& layer : layers) y = layer(y);
    return y;
  }
};
struct ForgotParam : Layer<ForgotParam> {
  Param scale{Shape{4}};
  Tensor forward(const Tensor& x) { return x * scale; }
};
struct ForgotOptional : Layer<ForgotOptional> {
  std::optional<Linear> out;
  ForgotOptional() { out.emplace(4, 4); }
  Tensor forward(const Tensor& x) { return out->product(x); }  // not by a call
};
struct ForgotBelow : Layer<ForgotBelow> {
  Forgot inner;
  ForgotBelow() { add("inner", inner); }
  Tensor forward(const Tensor& x) { return inner(x); }
};
struct ReplacedParam : Layer<ReplacedParam> {
  Param scale{Shape{4}};
  ReplacedParam() { add("scale", scale); }
  Tensor forward(const Tensor& x) { return x * scale; }
};

template <class M>
void expect_never_added(M module, const std::string& parameter) {
  const Tensor x = Tensor::from(ramp(8), {2, 4});
  const std::vector<std::string> words = {"a parameter is used that was never added", parameter,
                                          "called at test_nn.cpp:", "hint: add("};
  EXPECT_NO_THROW(run([&] { return no_grad([&] { return module(x); }); })) << "nothing would be trained";
  expect_error(ErrorKind::usage, words, [&] { run([&] { return module(x); }); });
  expect_error(ErrorKind::usage, words, [&] { module(x); });  // outside of run
  expect_error(ErrorKind::usage, words, [&] { run([&] { return module(x); }); });
}

TEST(NeverAdded, PartsOfAModuleAreReportedAtItsFirstCall) {
  expect_never_added(Forgot(), "'weight' (4, 4)");
  expect_never_added(ForgotList(), "'weight' (4, 4)");
  expect_never_added(ForgotParam(), "'param' (4,)");
  expect_never_added(ForgotOptional(), "'weight' (4, 4)");
  expect_never_added(ForgotBelow(), "'weight' (4, 4)");
}

TEST(NeverAdded, AParameterThatReplacedARegisteredOneIsReported) {
  ReplacedParam module;
  const Tensor x = Tensor::from(ramp(8), {2, 4});
  AdamW opt(module.parameters());
  run([&] { return module(x); });
  module.scale = Param({4});
  expect_error(ErrorKind::usage, {"never added", "'param' (4,)"}, [&] { run([&] { return module(x); }); });
}

struct Borrows : Layer<Borrows> {
  Linear& encoder;
  Linear head{4, 2};
  explicit Borrows(Linear& shared) : encoder(shared) { add("head", head); }
  Tensor forward(const Tensor& x) { return head(encoder(x)); }
};
struct Given : Layer<Given> {
  Linear body{4, 4};
  Given() { add("body", body); }
  Tensor forward(const Tensor& x, Linear& head) { return head(body(x)); }
};

struct ForgotDropout : Layer<ForgotDropout> {
  Linear in{4, 4};
  Dropout drop{0.5};
  ForgotDropout() { add("in", in); }
  Tensor forward(const Tensor& x) { return drop(in(x)); }
};
struct ForgotMask : Layer<ForgotMask> {
  GumbelMask mask{Shape{4}, DType::f32, {}};
  Tensor forward(const Tensor& x) { return x * mask.sample(); }
};

TEST(NeverAdded, LayersThatTrainDoesNotReachAreReported) {
  const Tensor x = Tensor::from(ramp(8), {2, 4});
  const std::vector<std::string> words = {"never added to the module, so train() does not reach it", "at test_nn.cpp:"};
  ForgotDropout forgot;
  ForgotMask mask;
  for (const bool training : {true, false}) {
    forgot.train(training), mask.train(training);
    expect_error(ErrorKind::usage, words, [&] { run([&] { return forgot(x); }); });
    expect_error(ErrorKind::usage, words, [&] { run([&] { return no_grad([&] { return forgot(x); }); }); });
    expect_error(ErrorKind::usage, words, [&] { run([&] { return mask(x); }); });
  }
  Dropout alone(0.5);
  EXPECT_EQ(run([&] { return alone(x); }).shape(), (Shape{2, 4})) << "called by itself";
  forgot.drop.train(false);
  EXPECT_EQ(run([&] { return forgot(x); }).to_host<float>(), run([&] { return forgot.in(x); }).to_host<float>())
      << "the program sets its mode";
}

TEST(NeverAdded, PartsThatBelongElsewhereAreNot) {
  const Tensor x = Tensor::from(ramp(8), {2, 4});
  Linear encoder(4, 4);
  Borrows borrows(encoder);
  EXPECT_EQ(run([&] { return borrows(x); }).shape(), (Shape{2, 2})) << "made before";
  Given given;
  Linear head(4, 2);
  AdamW opt(head.parameters());
  EXPECT_EQ(run([&] { return given(x, head); }).shape(), (Shape{2, 2})) << "an optimizer has it";
  Forgot frozen;
  frozen.out.set_trainable(false);
  EXPECT_EQ(run([&] { return frozen(x); }).shape(), (Shape{2, 4})) << "it is not to be trained";
}

TEST(NeverAdded, ALayerIsNotReplacedByAssignment) {
  EXPECT_FALSE((std::is_assignable_v<Linear&, Linear>));
  EXPECT_FALSE((std::is_assignable_v<MambaMixer&, MambaMixer>));
  EXPECT_FALSE((std::is_assignable_v<Net&, const Net&>));
  EXPECT_FALSE((std::is_swappable_v<Linear>));
  EXPECT_TRUE((std::is_copy_constructible_v<Linear> && std::is_move_constructible_v<Net>));
}

TEST(Init, DependsOnSeedAndNameAlone) {
  seed(5);
  Net first(2);
  const auto a = first.named_parameters();
  seed(5);
  Net other(3);
  const auto b = other.named_parameters();
  EXPECT_EQ(a[4].param.to_host<float>(), b[4].param.to_host<float>());  // layers.1.up.weight of both
  EXPECT_NE(a[0].param.to_host<float>(), a[4].param.to_host<float>());
  seed(6);
  EXPECT_NE(Net().parameters()[0].to_host<float>(), a[0].param.to_host<float>());
  seed(0);
}

TEST(Init, DoesNotDependOnThreads) {
  const int before = threads();
  std::vector<std::vector<float>> values;
  for (int n : {1, 2, 3}) {
    set_threads(n);
    Param p(Shape{300, 301});
    initialise(p, init::normal(1), 9, "w");
    values.push_back(p.to_host<float>());
  }
  set_threads(before);
  EXPECT_EQ(values[0], values[1]);
  EXPECT_EQ(values[0], values[2]);
}

TEST(Init, HasTheMomentsItSays) {
  const Draws draws(1, "x");
  constexpr int n = 200000;
  double uniform = 0, mean = 0, square = 0;
  for (int i = 0; i < n; ++i) {
    uniform += draws.uniform(i) / n;
    const double x = draws.normal(i);
    mean += x / n, square += x * x / n;
  }
  EXPECT_NEAR(uniform, 0.5, 0.003);
  EXPECT_NEAR(mean, 0, 0.01);
  EXPECT_NEAR(square, 1, 0.015);
  const Linear linear(100, 50);
  for (float w : linear.weight().to_host<float>()) EXPECT_LE(std::abs(w), 0.1f);
  EXPECT_FLOAT_EQ(float(init::s4d_real(4)(draws, 6)), std::log(3.f));
}

// y = x W^T + b on the host.
std::vector<double> linear_reference(const std::vector<double>& x, const std::vector<double>& w, const std::vector<double>& b,
                                     std::size_t in) {
  const std::size_t out = b.size(), rows = x.size() / in;
  std::vector<double> y(rows * out);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t o = 0; o < out; ++o) {
      y[r * out + o] = b[o];
      for (std::size_t i = 0; i < in; ++i) y[r * out + o] += x[r * in + i] * w[o * in + i];
    }
  return y;
}

TEST(Layers, LinearIsItsFormula) {
  Linear layer(5, 3);
  const Tensor x = Tensor::from(ramp(20), {2, 2, 5});
  const Tensor y = run([&] { return layer(x); });
  EXPECT_EQ(y.shape(), (Shape{2, 2, 3}));
  const auto expected =
      linear_reference(x.to_host<double>(), layer.weight().to_host<double>(), layer.bias().to_host<double>(), 5);
  const auto actual = y.to_host<double>();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-6);
  EXPECT_FALSE(Linear(2, 2, {.bias = false}).bias());
}

TEST(Layers, NormsAndEmbedding) {
  RMSNorm rms(4);
  LayerNorm layer(4);
  Embedding table(7, 4);
  const auto [a, b, c] = run([&] {
    const Tensor x = table(Tensor::from(std::vector<std::int64_t>{6, 0, 6}, {3}));
    return std::tuple(rms(x), layer(x), x);
  });
  const auto r = a.to_host<double>(), l = b.to_host<double>(), x = c.to_host<double>();
  EXPECT_EQ(std::vector<double>(x.begin(), x.begin() + 4), std::vector<double>(x.begin() + 8, x.end()));
  double square = 0, mean = 0, var = 0;
  for (int i = 0; i < 4; ++i) square += x[std::size_t(i)] * x[std::size_t(i)] / 4, mean += x[std::size_t(i)] / 4;
  for (int i = 0; i < 4; ++i) var += std::pow(x[std::size_t(i)] - mean, 2) / 4;
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(r[i], x[i] / std::sqrt(square + 1e-5), 1e-5);
    EXPECT_NEAR(l[i], (x[i] - mean) / std::sqrt(var + 1e-5), 1e-5);
  }
}

TEST(Layers, ConvWeightHasItsFileShape) {
  Conv1d conv(6, 4);
  EXPECT_EQ(conv.weight().shape(), (Shape{6, 4}));
  const TensorMap saved = conv.state_dict();
  EXPECT_EQ(saved.at("weight").shape, (std::vector<std::int64_t>{6, 1, 4}));
  Conv1d other(6, 4);
  other.load_state_dict(saved);
  EXPECT_EQ(run([&] { return other(Tensor::from(ramp(2 * 5 * 6), {2, 5, 6})); }).shape(), (Shape{2, 5, 6}));
}

TEST(Layers, DropoutIsTheIdentityInEvaluation) {
  Dropout drop(0.5);
  const Tensor x = ones({1000});
  drop.train(false);
  EXPECT_EQ(run([&] { return drop(x); }).to_host<float>(), x.to_host<float>());
  drop.train();
  const auto y = run([&] { return drop(x); }).to_host<float>();
  const auto zeros = std::count(y.begin(), y.end(), 0.f), twos = std::count(y.begin(), y.end(), 2.f);
  EXPECT_EQ(zeros + twos, 1000);
  EXPECT_NEAR(double(zeros), 500, 80);
}

TEST(Mask, EvaluationIsBinaryAndTheBiasUnmasked) {
  Linear layer = masked(Linear(5, 3));
  ASSERT_TRUE(layer.mask());
  std::vector<float> logits = ramp(15, 1);
  Param(layer.mask()->logits()).set(logits);
  layer.train(false);
  const Tensor x = Tensor::from(ramp(10), {2, 5});
  auto w = layer.weight().to_host<double>();
  int off = 0;
  for (std::size_t i = 0; i < w.size(); ++i)
    if (!(logits[i] > 0)) w[i] = 0, ++off;
  const auto expected = linear_reference(x.to_host<double>(), w, layer.bias().to_host<double>(), 5);
  const auto actual = run([&] { return layer(x); }).to_host<double>();
  for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-6);
  EXPECT_DOUBLE_EQ(layer.mask()->realised_sparsity(), off / 15.0);
}

TEST(Mask, EveryUseOfTheWeightGoesThroughIt) {
  Linear layer = masked(Linear(5, 3));
  Embedding table = masked(Embedding(4, 3));
  for (const GumbelMask& mask : {*layer.mask(), *table.mask()}) {
    std::vector<float> logits = ramp(std::size_t(mask.logits().shape().numel()), 1);
    Param(mask.logits()).set(logits);
  }
  layer.train(false), table.train(false);
  const auto kept = [](const Param& weight, const GumbelMask& mask) {
    std::vector<double> w = weight.to_host<double>(), l = mask.logits().to_host<double>();
    for (std::size_t i = 0; i < w.size(); ++i) w[i] = l[i] > 0 ? w[i] : 0;
    return w;
  };
  const auto near = [](const std::vector<double>& actual, const std::vector<double>& expected) {
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-6);
  };
  const Tensor x = Tensor::from(ramp(10), {2, 5}), y = Tensor::from(ramp(6), {2, 3}),
               ids = Tensor::from<std::int64_t>({2, 0}, {2});
  const std::vector<double> w = kept(layer.weight(), *layer.mask()), e = kept(table.weight(), *table.mask());
  near(run([&] { return layer.product(x); }).to_host<double>(),
       linear_reference(x.to_host<double>(), w, std::vector<double>(3), 5));
  near(run([&] { return layer.product(x) + layer.shift(); }).to_host<double>(),
       run([&] { return layer(x); }).to_host<double>());
  near(run([&] { return table(ids); }).to_host<double>(), {e[6], e[7], e[8], e[0], e[1], e[2]});
  near(run([&] { return table.logits(y); }).to_host<double>(),
       linear_reference(y.to_host<double>(), e, std::vector<double>(4), 3));
  EXPECT_FALSE(Linear(2, 2, {.bias = false}).shift());
}

TEST(Layers, ConvolutionsTakeTheirOptionsInBraces) {
  Conv1d conv(4, 3);
  const Tensor x = Tensor::from(ramp(40), {2, 5, 4});
  EXPECT_EQ(run([&] { return conv(x, {.silu = true}); }).to_host<float>(),
            run([&] { return conv(x, Conv1dOptions{.silu = true}); }).to_host<float>());
  expect_error(ErrorKind::usage, {"test_nn.cpp:" + std::to_string(__LINE__ + 1)}, [&] {
    run([&] { return conv(ones({2, 5, 3}), {.silu = true}); });
  });
}

TEST(Mask, MistakesAreNamedWithTheirLineAndAHint) {
  Linear layer = masked(Linear(2, 3));
  const auto at = [](int line) { return "test_nn.cpp:" + std::to_string(line); };
  expect_error(ErrorKind::usage, {"the layer has a mask already", "weight (3, 2)", at(__LINE__ + 1), "mask it once"},
               [&] { masked(layer); });
  expect_error(ErrorKind::usage, {"both exclusive", "initial_sparsity 1", at(__LINE__ + 1), "hint: "},
               [] { masked(Linear(2, 3), {.initial_sparsity = 1}); });
  expect_error(ErrorKind::usage, {"temperature must be positive", "temperature 0", at(__LINE__ + 1), "hint: "},
               [&] { GumbelMask(*layer.mask()).set_temperature(0); });
}

TEST(Mask, TrainingSamplesAnewAndGivesGradients) {
  Linear layer = masked(Linear(20, 30), {.noise = MaskNoise::logistic, .initial_sparsity = 0.3});
  EXPECT_NEAR(layer.mask()->expected_sparsity(), 0.3, 1e-6);
  const auto sample = [&] { return run([&] { return layer.mask()->sample(); }).to_host<float>(); };
  const auto first = sample(), second = sample();
  EXPECT_NE(first, second);
  const double on = std::accumulate(first.begin(), first.end(), 0.0) / 600;  // P(on) = sigmoid(logit) = 0.7
  EXPECT_NEAR(on, 0.7, 0.08);
  for (float m : first) EXPECT_TRUE(m == 0 || m == 1);
  run([&] { backward(sum(square(layer(ones({2, 20}))))); });
  const auto g = layer.mask()->logits().gradient<float>();
  EXPECT_GT(std::count_if(g.begin(), g.end(), [](float v) { return v != 0; }), 300);
  EXPECT_FALSE(layer.mask()->logits().decay());
}

TEST(Mask, PenaltyIsItsFormula) {
  Linear layer = masked(Linear(2, 2));
  const std::vector<float> l = {-1, 0.5f, 2, 0};
  Param(layer.mask()->logits()).set(l);
  double mean = 0;
  for (float v : l) mean += 1 / (1 + std::exp(-double(v))) / 4;
  const Tensor p = run([&] {
    Tensor t = mask_penalty({*layer.mask()}, 0.5, 0.3);
    backward(t);
    return t;
  });
  EXPECT_NEAR(p.item(), 0.5 * std::abs((1 - mean) - 0.3), 1e-6);
  const double sign = (1 - mean) > 0.3 ? 1 : -1, s = 1 / (1 + std::exp(1.0));
  EXPECT_NEAR(layer.mask()->logits().gradient<double>()[0], -0.5 * sign * s * (1 - s) / 4, 1e-6);
}

TEST(Mask, OfAConvolutionAndOfACopy) {
  Conv1d conv(4, 3);
  Conv1d copy = conv;
  copy.mask({});
  EXPECT_TRUE(conv.mask());  // handles share the mask, so no use of the weight misses it
  std::vector<float> logits(12, -1);
  Param(conv.mask()->logits()).set(logits);
  conv.train(false);
  const auto y = run([&] { return conv(ones({1, 5, 4})); }).to_host<float>();
  const auto b = conv.bias().to_host<float>();
  for (std::size_t i = 0; i < y.size(); ++i) EXPECT_FLOAT_EQ(y[i], b[i % 4]);
}

}  // namespace
}  // namespace weft
