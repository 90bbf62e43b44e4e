// Mistakes and what is said about them: message and exit code, by the library and by the program.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "autograd/settings.h"
#include "jit/driver.h"
#include "jit/file.h"
#include "jit/json.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/temp_folder.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

// ---- in a program that uses the library -------------------------------------------------------------------------------------

struct Mistake {
  const char* name;
  int code;                        // of the weft program, had it made the mistake
  std::vector<std::string> words;  // what, numbers, where and hint
  std::function<void()> make;
};

Tensor tensor(Shape shape) { return ones(shape); }

// Stands for ops whose holes have other contracts than the scan's.
constexpr HoleSpec kToyHoles[] = {{.name = "score", .coordinates = "h i j", .values = 1},
                                  {.name = "mask", .coordinates = "h i j", .values = 0, .result = ExprType::boolean}};
const Op& toy_op = register_op({.name = "test_toy", .lower = [](Lowering&) {}, .holes = kToyHoles});
void toy(const HoleOf<1, 3>& score, const HoleOf<0, 3>& mask, Site where = Site::current()) {
  Recorder(toy_op, where).hole(0, score, {2, 4, 4}).hole(1, mask, {2, 4, 4}).out({2, 4, 4}, DType::f32).record();
}

Tensor scan_with(HoleOf<1, 3> delta, Site where = Site::current()) {
  const Tensor x = tensor({1, 2, 4}), n = tensor({1, 2, 3});
  return scan(Arg(x, where), x, tensor({4, 3}), n, n, {.delta = std::move(delta)});
}

Tensor scan_to(HoleOf<1, 3> out) {
  const Tensor x = tensor({1, 2, 4}), n = tensor({1, 2, 3});
  return scan(x, x, tensor({4, 3}), n, n, {.out = std::move(out)});
}

struct Mlp : Layer<Mlp> {
  Linear up{4, 8};
  Mlp() { add("up", up); }
  Tensor forward(const Tensor& x) { return up(x); }
};

std::vector<Mistake> mistakes() {
  return {
      {"matmul of shapes that do not fit",
       2,
       {"matmul: inner dimensions differ", "(8, 512)", "(256, 4)", "512 against 256", "test_mistakes.cpp", "hint: "},
       [] {
         matmul(tensor({8, 512}), tensor({256, 4}));
       }},
      {"linear with the wrong width, in a module",
       2,
       {"linear: the last axis of x is not the weight's input width", "(2, 5)", "(8, 4)", "in up, called at",
        "test_mistakes.cpp"},
       [] {
         Mlp mlp;
         run([&] { return mlp(tensor({2, 5})); });
       }},
      {"shapes that do not broadcast",
       2,
       {"the shapes do not broadcast", "(3, 4)", "(5,)", "test_mistakes.cpp"},
       [] {
         tensor({3, 4}) + tensor({5});
       }},
      {"a coordinate that a pointwise op has not",
       2,
       {"shifted: index 2 does not exist", "test_mistakes.cpp", "hint: "},
       [] {
         pointwise("shifted", {tensor({3, 4})}, [](Expr v) { return v + expr::index(2); });
       }},
      {"a coordinate that a hole has not",
       2,
       {"scan: index 7 does not exist", "hole 'delta' has coordinates (b, t, i)", "test_mistakes.cpp", "hint: "},
       [] { scan_with(hole({}, [](Expr v) { return v + expr::index(7); })); }},
      {"a tensor indexed outside of a hole",
       2,
       {"a tensor is indexed outside of a hole", "(3,)", "test_mistakes.cpp", "hint: "},
       [] { tensor({3})(expr::index(0)); }},
      {"the wrong number of subscripts",
       2,
       {"a tensor is indexed with the wrong number of subscripts", "(3, 4) has 2 axes, indexed with 1", "test_mistakes.cpp"},
       [] {
         const Tensor bias = tensor({3, 4});
         scan_with([&](Expr v, Index, Index, Index i) { return v + bias(i); });
       }},
      {"a real subscript",
       2,
       {"a subscript is real", "to_integer() it", "test_mistakes.cpp"},
       [] {
         const Tensor bias = tensor({4});
         scan_with([&](Expr v) { return v + bias(v); });
       }},
      {"a subscript that leaves its tensor",
       2,
       {"scan: hole 'delta' indexes a tensor outside of it", "1 + i is 4 of (4,) at b 0, t 0, i 3", "axis 0 has 4 places",
        "test_mistakes.cpp", "hint: "},
       [] {
         const Tensor bias = tensor({4});
         scan_with([&](Expr v, Index, Index, Index i) { return v + bias(i + 1); });
       }},
      {"a subscript that leaves its tensor when the kernel runs",
       2,
       {"a subscript in a hole is outside of its tensor", "subscript 4 of axis 0, which has 4 places", "hint: "},
       [] {
         const Tensor bias = tensor({4});
         for (const std::int64_t id : {2, 4}) {
           const Tensor ids = Tensor::from(std::vector<std::int64_t>{0, 3, id, 1}, {4});
           run([&] { return scan_with([&](Expr v, Index, Index, Index i) { return v + bias(ids(i)); }); }).to_host<float>();
         }
       }},
      {"a subscript that leaves its tensor where only the gradient is wanted",
       2,
       {"a subscript in a hole is outside of its tensor", "subscript -1 of axis 1, which has 4 places", "hint: "},
       [] {
         const Tensor bias = tensor({2, 4});
         for (const std::int64_t id : {2, -1}) {
           const Tensor ids = Tensor::from(std::vector<std::int64_t>{0, 3, id, 1}, {4});
           run([&] {
             const Tensor y = scan_with([&](Expr v, Index, Index t, Index i) { return v + bias(t, ids(i)); });
             return grad(sum(y), {bias})[0];
           }).to_host<float>();
         }
       }},
      {"the same in the hole for the result",
       2,
       {"a subscript in a hole is outside of its tensor", "subscript 4 of axis 0, which has 4 places", "hint: "},
       [] {
         const Tensor bias = tensor({4});
         for (const std::int64_t id : {2, 4}) {
           const Tensor ids = Tensor::from(std::vector<std::int64_t>{0, 3, id, 1}, {4});
           run([&] {
             return grad(sum(scan_to([&](Expr v, Index, Index, Index i) { return v + bias(ids(i)); })), {bias})[0];
           }).to_host<float>();
         }
       }},
      {"a literal subscript that leaves its tensor",
       2,
       {"scan: hole 'delta' indexes a tensor outside of it", "4 is outside of axis 0, which has 4 places", "test_mistakes.cpp"},
       [] {
         const Tensor bias = tensor({4});
         scan_with([&](Expr v) { return v + bias(4); });
       }},
      {"the gradient of an element that is found by the hole's value",
       2,
       {"hole 'out' finds an element by its own value, which has no gradient", "of (4,)", "test_mistakes.cpp",
        "hint: detach() the tensor"},
       [] {
         const Tensor table = tensor({4});
         grad(sum(scan_to([&](Expr s) { return s * table(clamp(to_integer(s), 0, 3)); })), {table});
       }},
      {"a dead tensor in a hole",
       2,
       {"tensor: this handle is dead", "test_mistakes.cpp"},
       [] {
         Tensor dead;
         run([&] { dead = tensor({4}) * 2.0; });
         scan_with([&](Expr v, Index, Index, Index i) { return v + dead(i); });
       }},
      {"too many tensors in a hole",
       2,
       {"a hole holds too many tensors", "9 of at most 8", "test_mistakes.cpp", "hint: join"},
       [] {
         std::vector<Tensor> many;
         for (int k = 0; k < 9; ++k) many.push_back(tensor({4}));
         scan_with([&](Expr v, Index, Index, Index i) {
           for (const Tensor& x : many) v = v + x(i);
           return v;
         });
       }},
      {"too many constants in a hole",
       2,
       {"a hole holds too many constants and Scalars", "17 of at most 16", "test_mistakes.cpp", "hint: "},
       [] {
         scan_with(hole({}, [](Expr v) {
           for (int k = 0; k < 17; ++k) v = v + 0.01 * (k + 3);
           return v;
         }));
       }},
      {"too many elements in a hole",
       2,
       {"scan: hole 'delta' reads too many elements", "17 of at most 16", "test_mistakes.cpp", "hint: "},
       [] {
         const Tensor taps = tensor({20});
         scan_with([&](Expr v, Index, Index, Index i) {
           for (int k = 0; k < 17; ++k) v = v + taps(i + k);
           return v;
         });
       }},
      {"a function of too few values in a hole",
       2,
       {"hole: the function does not take one value and each captured tensor", "1 captured", "test_mistakes.cpp", "hint: "},
       [] { hole({tensor({4})}, [](Expr v) { return v; }); }},
      {"a function of too many values in a pointwise op",
       2,
       {"pointwise: the function does not take one Expr for each tensor", "1 tensors", "test_mistakes.cpp", "hint: "},
       [] { pointwise("two", {tensor({4})}, [](Expr a, Expr b) { return a + b; }); }},
      {"a tensor indexed in a pointwise op",
       2,
       {"a tensor is indexed outside of a hole", "test_mistakes.cpp", "a pointwise op cannot index"},
       [] {
         const Tensor bias = tensor({4});
         pointwise("look", {tensor({4})}, [&](Expr v) { return v + bias(expr::index(0)); });
       }},
      {"a number where a condition is wanted",
       2,
       {"test_toy: the mask is real, not boolean", "compare it", "test_mistakes.cpp"},
       [] { toy({}, [](Index, Index i, Index j) { return to_real(i - j); }); }},
      {"a gradient that a contract does not allow",
       2,
       {"test_toy: the score gives no gradient to what it captures", "captured 0, (4, 4), requires a gradient", "detach() it",
        "test_mistakes.cpp"},
       [] {
         Param full({4, 4});
         run([&] { toy([&](Expr s, Index, Index i, Index j) { return s + full(i, j); }, {}); });
       }},
      {"a condition where a number is wanted",
       2,
       {"scan: the delta is boolean", "where(c, a, b)", "test_mistakes.cpp"},
       [] { scan_with([](Expr v) { return v > 0.f; }); }},
      {"a draw in a hole",
       2,
       {"scan: hole 'delta' cannot draw", "apply dropout() after", "test_mistakes.cpp"},
       [] { scan_with([](Expr v, Index, Index, Index i) { return v + expr::uniform(0, i); }); }},
      {"SiLU and a hole for the result of a convolution",
       2,
       {"conv1d: SiLU and a function for the result", "test_mistakes.cpp", "hint: give one of them"},
       [] {
         conv1d(tensor({1, 5, 4}), tensor({4, 3}), Tensor{}, {.silu = true, .out = silu_hole()});
       }},
      {"a tensor in a hole of a norm that does not broadcast",
       2,
       {"rms_norm: a tensor captured by hole 'out' does not broadcast", "captured 0 is (3,)", "(i, j)", "(2, 4)",
        "test_mistakes.cpp", "hint: "},
       [] {
         rms_norm(tensor({2, 4}), tensor({4}), 1e-5, {}, gate(tensor({3})));
       }},
      {"a draw in a hole of a norm",
       2,
       {"rms_norm: hole 'out' cannot draw", "test_mistakes.cpp", "hint: apply dropout() after"},
       [] {
         rms_norm(tensor({2, 4}), tensor({4}), 1e-5, {},
                  hole({}, [](Expr v) { return v * expr::uniform(0, expr::element()); }));
       }},
      {"an absent tensor in a hole of a convolution",
       2,
       {"conv1d: hole 'out' captures an absent tensor", "captured 0", "test_mistakes.cpp"},
       [] {
         conv1d(tensor({1, 5, 4}), tensor({4, 3}), Tensor{}, {.out = gate(Tensor{})});
       }},
      {"a subscript outside of its tensor in a hole of a convolution",
       2,
       {"conv1d: hole 'out' indexes a tensor outside of it", "d is 3 of (3,)", "axis 0 has 3 places", "test_mistakes.cpp"},
       [] {
         const Tensor s = tensor({3});
         conv1d(tensor({1, 5, 4}), tensor({4, 3}), Tensor{}, {.out = [&](Expr v, Index, Index, Index d) { return v * s(d); }});
       }},
      {"two expressions in a hole of a norm",
       2,
       {"rms_norm: hole 'out' gives another number of expressions", "2 for 1", "test_mistakes.cpp"},
       [] {
         rms_norm(tensor({2, 4}), tensor({4}), 1e-5, {}, Hole{{expr::input(0), exp(expr::input(0))}, {}, {}});
       }},
      {"heads of queries that do not divide into groups",
       2,
       {"attention: the heads of q do not divide into the groups of k", "4 heads, 3 groups", "test_mistakes.cpp", "hint: "},
       [] {
         attention(tensor({1, 5, 4, 8}), tensor({1, 5, 3, 8}), tensor({1, 5, 3, 8}));
       }},
      {"a score given as a mask",
       2,
       {"attention: the mask is real, not boolean", "test_mistakes.cpp", "hint: compare it: s > 0"},
       [] {
         const Tensor x = tensor({1, 5, 2, 8});
         attention(x, x, x, {.mask = [](Index, Index, Index i, Index j) { return to_real(i - j); }});
       }},
      {"a mask given as a score",
       2,
       {"attention: the score is boolean", "test_mistakes.cpp", "where(c, a, b)"},
       [] {
         const Tensor x = tensor({1, 5, 2, 8});
         attention(x, x, x, {.score = [](Expr, Index, Index, Index i, Index j) { return i >= j; }});
       }},
      {"a learned bias for all pairs of queries and keys",
       2,
       {"attention: the score gives no gradient to what it captures", "captured 0, (2, 5, 5), is indexed by (h, i, j)",
        "test_mistakes.cpp", "hint: index it by i - j, by i or by j, or detach() it"},
       [] {
         const Tensor x = tensor({1, 5, 2, 8});
         Param full({2, 5, 5});
         run([&] {
           return attention(x, x, x, {.score = [&](Expr s, Index, Index h, Index i, Index j) { return s + full(h, i, j); }});
         });
       }},
      {"a bias that is too short for what the mask shows",
       2,
       {"a subscript in a hole is outside of its tensor", "subscript 3 of axis 0, which has 3 places", "hint: "},
       [] {
         const Tensor x = tensor({1, 5, 2, 8}), bias = tensor({3});
         for (const int window : {3, 4}) {
           const Tensor o = attention(x, x, x,
                                      {.score = [&](Expr s, Index, Index, Index i, Index j) { return s + bias(i - j); },
                                       .mask = [&](Index, Index, Index i, Index j) { return i >= j && i - j < window; }});
           o.to_host<float>();
         }
       }},
      {"a handle that outlived its step",
       2,
       {"tensor: this handle is dead", "return the tensor from the step function", "test_mistakes.cpp"},
       [] {
         Tensor kept;
         run([&] {
           kept = tensor({2}) * 3.0;
           return kept + 1.0;
         });
         kept + 1.0;
       }},
      {"item inside run",
       2,
       {"tensor: a value was asked for inside run", "test_mistakes.cpp"},
       [] { run([] { return tensor({}) * tensor({}).item(); }); }},
      {"run inside run",
       2,
       {"run: called inside run", "test_mistakes.cpp", "call the inner step's function directly"},
       [] { run([] { run([] { return tensor({1}); }); }); }},
      {"two assigns to one State",
       2,
       {"assign: state 'counter' is written twice in one step", "combine the values and assign once", "test_mistakes.cpp"},
       [] {
         State s({2}, DType::f32, "counter");
         run([&] { assign(s, tensor({2})), assign(s, tensor({2})); });
       }},
      {"run inside run, of a step that takes arguments",
       2,
       {"run: called inside run", "at test_mistakes.cpp:"},
       [] { run([] { run([](int) {}, 3); }); }},
      {"a dead tensor is returned",
       2,
       {"tensor: this handle is dead", "at test_mistakes.cpp:"},
       [] {
         Tensor dead;
         run([&] { dead = tensor({4}) * 2.0; });
         run([&] { return dead; });
       }},
      {"a state that is gone before its step runs",
       2,
       {"a state was destroyed", "at test_mistakes.cpp:"},
       [] { run([] { return Param({2}).read() + 1.0; }); }},
      {"a label smoothing that is no number",
       2,
       {"label smoothing is not in [0, 1)", "nan", "at test_mistakes.cpp:"},
       [] {
         cross_entropy(tensor({2, 3}), zeros({2}, DType::i64), {.label_smoothing = std::nan("")});
       }},
      {"a probability of dropout that is none",
       2,
       {"dropout: p is not a probability", "nan", "at test_mistakes.cpp:"},
       [] { dropout(tensor({2}), std::nan("")); }},
      {"a layer of dropout of everything", 2, {"Dropout: p must lie in [0, 1)", "at test_mistakes.cpp:"}, [] { Dropout(1); }},
      {"a temperature of a mask that is no number",
       2,
       {"the temperature is not positive", "nan", "at test_mistakes.cpp:"},
       [] { gumbel_sigmoid(tensor({2}), {.temperature = std::nan("")}); }},
      {"a pointwise op of nothing",
       2,
       {"does not take one Expr for each tensor", "0 tensors", "at test_mistakes.cpp:"},
       [] { pointwise("lonely", {}, [](Expr) { return Expr(1.0); }); }},
      {"a concat of nothing", 2, {"concat: no parts", "at test_mistakes.cpp:"}, [] { concat({}, 0); }},
      {"an output that an op has not",
       2,
       {"output_of: the op has no such output", "output 1 of 1", "at test_mistakes.cpp:"},
       [] { output_of(tensor({2}), 1); }},
      {"a name for two parts of a module",
       2,
       {"a name is registered twice", "'up'", "at test_mistakes.cpp:"},
       [] {
         struct Twice : Mlp {
           Twice() { add("up", up); }
         } twice;
       }},
      {"a State read on the host inside run",
       2,
       {"state 'counter' was accessed from the host inside run"},
       [] {
         State s({2}, DType::f32, "counter");
         run([&] { s.to_host<float>(); });
       }},
      {"backward of something that is no loss",
       2,
       {"backward: the loss is not one real number", "(2, 3)", "test_mistakes.cpp"},
       [] {
         Param w({2, 3});
         run([&] { backward(w.read() * 2.0); });
       }},
      {"backward of a loss without parameters",
       2,
       {"backward: the loss does not depend on a trainable parameter"},
       [] { run([] { backward(sum(tensor({3}))); }); }},
      {"the gradient by a tensor that the loss does not depend on",
       2,
       {"grad: the value does not depend on this tensor", "tensor 1 of 2, (3,)", "at test_mistakes.cpp:", "hint: leave it out"},
       [] {
         const Tensor a = tensor({2}) * 2.0, b = tensor({3}) * 2.0;
         grad(sum(a * a), {a, b});
       }},
      {"the gradient by a tensor behind detach",
       2,
       {"grad: the value does not depend on this tensor", "tensor 0 of 2", "at test_mistakes.cpp:"},
       [] {
         const Tensor a = tensor({2}) * 2.0, b = tensor({2}) * 3.0;
         grad(sum(detach(a) * b), {a, b});
       }},
      {"the gradient by a tensor that is only compared",
       2,
       {"grad: the value does not depend on this tensor", "comparisons"},
       [] {
         const Tensor a = tensor({2}) * 2.0, b = tensor({2}) * 3.0;
         grad(sum(where(greater(a, 0.0), b, b * 2.0)), {b, a});
       }},
      {"step without backward",
       2,
       {"AdamW: no parameter has a gradient", "call backward(loss) before step()", "test_mistakes.cpp"},
       [] {
         AdamW opt({Param({2})});
         run([&] { opt.step(); });
       }},
      {"a token id beyond the vocabulary",
       2,
       {"out of range", "300", "vocabulary 256"},
       [] {
         Embedding table(256, 4);
         for (const std::int64_t id : {255, 300})
           run([&] { return table(Tensor::from(std::vector<std::int64_t>{1, id}, {2})); }).to_host<float>();
       }},
      {"a prompt beyond the vocabulary",
       2,
       {"generate: a token id is out of range", "id 256, vocabulary 256", "hint: "},
       [] {
         Mamba model({.vocab = 256, .width = 8, .layers = 1, .state = 2});
         generate(model, {65, 256});
       }},
      {"item of many elements", 2, {"item: the tensor has not one element", "(2,)"}, [] { tensor({2}).item(); }},
      {"a slice out of range", 2, {"slice: out of range", "[2, 9) of axis 0 of (4,)"}, [] { slice(tensor({4}), 0, 2, 9); }},
      {"a missing file",
       4,
       {"/nowhere/model.safetensors", "No such file"},
       [] { read_safetensors("/nowhere/model.safetensors"); }},
      {"a truncated safetensors file",
       4,
       {"model.safetensors"},
       [] {
         const TempFolder folder;
         Mamba model({.vocab = 8, .width = 8, .layers = 1, .state = 2});
         model.save(folder.path());
         fs::resize_file(folder / "model.safetensors", fs::file_size(folder / "model.safetensors") - 9);
         Mamba::load(folder.path());
       }},
      {"an unknown configuration key",
       4,
       {"unknown key", "'vocab_sise'; did you mean 'vocab_size'?"},
       [] {
         nlohmann::json j = to_hugging_face(MambaConfig{.width = 8, .layers = 1});
         j["vocab_sise"] = 4;
         mamba_config_from_json(j);
       }},
      {"a missing configuration key",
       4,
       {"size keys are missing: num_hidden_layers"},
       [] {
         nlohmann::json j = to_hugging_face(MambaConfig{.width = 8, .layers = 1});
         j.erase("num_hidden_layers");
         mamba_config_from_json(j);
       }},
      {"weights of another model",
       4,
       {"load: the tensors do not fit the model", "missing: bias (3,)", "nothing was loaded"},
       [] { Linear(4, 3).load_state_dict(Linear(4, 3, {.bias = false}).state_dict()); }},
      {"an unknown device", 2, {"unknown device 'tpu'; did you mean 'cpu'?"}, [] { use_device("tpu"); }},
      {"a device that is not there", 3, {"CUDA driver is missing", "apt-get install"}, [] { use_device("cuda"); }},
      {"a word WEFT_LOG does not know",
       2,
       {"WEFT_LOG: unknown word 'kernals'; did you mean 'kernels'?"},
       [] {
         ::setenv("WEFT_LOG", "why,kernals", 1);
         try {
           read_settings();
         } catch (...) {
           ::unsetenv("WEFT_LOG");
           throw;
         }
         ::unsetenv("WEFT_LOG");
       }},
  };
}

TEST(Mistakes, OfTheLibrary) {
  for (const Mistake& mistake : mistakes()) {
    SCOPED_TRACE(mistake.name);
    if (!missing_cuda_device() && std::string_view(mistake.name) == "a device that is not there") continue;
    try {
      mistake.make();
      ADD_FAILURE() << "no error";
    } catch (const Error& e) {
      const std::string text = e.what();
      EXPECT_EQ(exit_code(e.kind()), mistake.code) << text;
      if (e.kind() == ErrorKind::usage && !e.parts().where.empty()) {
        EXPECT_NE(e.parts().where.find("test_mistakes.cpp:"), std::string::npos) << "no line of the user's: " << text;
      }
      for (const std::string& word : mistake.words)
        EXPECT_NE(text.find(word), std::string::npos) << "no \"" << word << "\" in: " << text;
    }
    EXPECT_EQ(run([] { return tensor({}) + 1.0; }).item(), 2) << "the next step works";
  }
}

// ---- on the command line ----------------------------------------------------------------------------------------------------

class Program : public ProgramTest {};

// Rows name files that prepare() makes. `weft train $tiny` is a run that works.
constexpr const char* kPage = "weft inspect model --html /dev/full";
constexpr const char* kTiny = "tiny='--data text.txt --batch 2 --length 16 --width 16 --layers 1 --state 4 --sample 0'; ";

void prepare(const TempFolder& folder) {
  const auto change_json = [](const fs::path& file, const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json j = read_json(file);
    change(j);
    std::ofstream(file) << j;
  };
  folder.write("nanoption.json", "{\"batch\": 4, \"lr\": NaN}"), folder.write("infoption.json", "{\"clip\": -Infinity}");
  folder.write("badoption.json", "{\"batchs\": 3}"), folder.write("short.txt", "too short"), folder.write("empty.txt", "");
  std::string text;
  for (int i = 0; i < 100; ++i) text += "line " + std::to_string(i) + "\n";
  folder.write("text.txt", text);

  seed(1);
  Mamba(MambaConfig{.vocab = 16, .width = 8, .layers = 1, .state = 2}).save(folder / "model");
  Mamba(MambaConfig{.vocab = 256, .width = 8, .layers = 1, .state = 2}).save(folder / "bytes");
  const auto copy = [&](const char* name) {
    fs::copy(folder / "model", folder / name);
    return folder / name;
  };
  TensorMap reference{{"input_ids", HostTensor::from<std::int64_t>(DType::i64, {1, 2}, std::vector<std::int64_t>{3, 4})}};
  write_safetensors(copy("nologits") / "reference.safetensors", reference);
  reference["logits"] = HostTensor::from<float>(DType::f32, {1, 2, 16}, std::vector<float>(32, 1));
  for (const char* name : {"wrong", "cut", "gpt2", "typo", "sizes", "nojson", "shapes", "huge", "nan", "barenan"})
    write_safetensors(copy(name) / "reference.safetensors", reference);
  fs::resize_file(folder / "cut/model.safetensors", 100);
  change_json(folder / "gpt2/config.json", [](auto& j) { j["model_type"] = "gpt2"; });
  change_json(folder / "typo/config.json", [](auto& j) { j["hidden_sise"] = 8; });
  change_json(folder / "sizes/config.json", [](auto& j) { j.erase("state_size"), j.erase("num_hidden_layers"); });
  std::ofstream(folder / "nojson/config.json") << "{\"model_type\": \"mamba\",\n}";
  change_json(folder / "shapes/config.json", [](auto& j) { j["state_size"] = 3, j["use_bias"] = true; });
  change_json(folder / "huge/config.json", [](auto& j) { j["vocab_size"] = 1 << 29; });
  change_json(folder / "nan/config.json", [](auto& j) { j["layer_norm_epsilon"] = "NaN"; });
  change_json(folder / "barenan/config.json",
              [](auto& j) { j["layer_norm_epsilon"] = std::nan(""); });  // it is written as null
  std::string bare = read_text(folder / "barenan/config.json");
  bare.replace(bare.find("null", bare.find("layer_norm_epsilon")), 4, "NaN");
  std::ofstream(folder / "barenan/config.json") << bare;

  for (const char* name : {"pickle", "noshard", "badstate", "nomodel"}) fs::create_directory(folder / name);
  for (const char* name : {"pickle", "noshard", "nomodel"}) {
    fs::copy_file(folder / "model/config.json", folder / name / "config.json");
    fs::copy_file(folder / "wrong/reference.safetensors", folder / name / "reference.safetensors");
  }
  folder.write("pickle/pytorch_model.bin", "PK"), folder.write("badstate/state.json", "{\"format\": 1");
  folder.write("noshard/model.safetensors.index.json",
               R"({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})");
}

TEST_F(Program, Mistakes) {
  prepare(folder_);
  const struct {
    const char* name;
    const char* command;
    int code;  // 1 training or verification failed, 2 usage, 3 device, 4 input or output
    std::vector<std::string> words;
  } rows[] = {
      // words
      {"no subcommand", "weft", 2, {"a subcommand is needed", "train", "verify"}},
      {"misspelt subcommand", "weft trian", 2, {"unknown subcommand 'trian'; did you mean 'train'?"}},
      {"misspelt option of the program", "weft --hepl", 2, {"unknown option '--hepl'; did you mean '--help'?"}},
      {"misspelt option",
       "weft train --stpes 10",
       2,
       {"train: unknown option '--stpes'; did you mean '--steps'?", "weft train --help"}},
      {"misspelt option, =", "weft train --widht=10", 2, {"unknown option '--widht'; did you mean '--width'?"}},
      {"a word that nothing takes", "weft train extra", 2, {"train: unexpected word 'extra'"}},
      {"misspelt device", "weft train --device cdua", 2, {"train: --device: unknown word 'cdua'; did you mean 'cuda'?"}},
      {"unknown device",
       "weft verify model --device gpu",
       2,
       {"verify: --device: unknown word 'gpu'", "auto, cpu, cuda, emu", "weft verify --help"}},
      {"misspelt precision", "weft train --precision pf32", 2, {"--precision: unknown word 'pf32'; did you mean 'fp32'?"}},
      {"unknown precision", "weft verify model --dtype f16", 2, {"--dtype: unknown word 'f16'", "f32, f64, bf16"}},
      {"misspelt group of benchmarks", "weft bench interpretre", 2, {"did you mean 'interpreter'?"}},
      {"unknown shell", "weft completion fish", 2, {"completion: shell: unknown word 'fish'", "bash, zsh"}},
      {"kernel not named", "weft inspect model --source", 2, {"inspect: which kernel?", "--kernel"}},
      {"trace without times", "weft inspect model --trace t.json", 2, {"a trace needs the times of a GPU"}},
      {"architecture before 8.0", "weft inspect model --arch sm_75", 2, {"--arch: 'sm_75' is no architecture of 8.0 or later"}},
      {"verify what?", "weft verify", 2, {"folder is required", "weft verify --help"}},
      {"misspelt where something is missing", "weft verify --folder model", 2, {"unknown option '--folder'"}},
      // numbers
      {"option without a value", "weft train --steps", 2, {"--steps", "weft train --help"}},
      {"word for a number", "weft train --steps=ten", 2, {"--steps", "ten"}},
      {"fraction for an integer", "weft train --steps 1.5", 2, {"--steps", "1.5"}},
      {"number of 70 bits", "weft train --steps 999999999999999999999", 2, {"--steps", "999999999999999999999"}},
      {"no steps", "weft train $tiny --steps 0", 2, {"at least one step is needed", "steps 0"}},
      {"epochs without end", "weft train --data text.txt --length 16 --epochs 1e300", 2, {"--epochs 1e+300", "give --steps"}},
      {"a batch of 2^58 windows",
       "weft train --task induction --batch 288230376151711744",
       2,
       {"too large: --batch 288230376151711744"}},
      {"a window of 2^63 - 1 tokens",
       "weft train --data text.txt --length 9223372036854775807",
       2,
       {"too large: --length 92233"}},
      {"2^63 - 1 steps", "weft train $tiny --steps 9223372036854775807", 2, {"too large: --steps 92233"}},
      {"more epochs than steps", "weft train --data text.txt --length 16 --epochs 1e17", 2, {"--epochs 1e+17", "give --steps"}},
      {"a step of 2^70 tokens",
       "weft train --task induction --batch 1073741824 --length 1073741824 --accumulate 1024",
       2,
       {"accumulate x batch x length", "more than 64 bits can count", "1024 x 1073741824 x 1073741824"}},
      {"a batch beyond memory",
       "weft train --task induction --batch 1000000000 --length 1000000",
       3,
       {"memory: more than this machine has", "a batch of 1000000000 x 1000000 tokens"}},
      {"sizes in a file",
       "echo '{\"task\": \"induction\", \"batch\": 288230376151711744}' >big.json; weft train --config big.json",
       4,
       {"big.json: train: too large: --batch 288230376151711744"}},
      {"inspect a batch of 2^62",
       "weft inspect model --batch 4611686018427387904",
       2,
       {"--batch: 4611686018427387904 is above"}},
      {"evaluate windows of 2^62",
       "weft eval --from bytes --data text.txt --length 4611686018427387904",
       2,
       {"--length: 4611686018427387904 is above"}},
      {"100000 threads", "weft train $tiny --threads 100000", 2, {"too large: --threads 100000, at most 256"}},
      {"100000 threads to generate", "weft generate --from bytes --threads 100000", 2, {"--threads: 100000 is above 256"}},
      {"a text without end", "weft train --data /dev/zero", 4, {"/dev/zero: too large", "a stream may have no end"}},
      {"a prompt without end", "weft generate --from bytes --prompt - </dev/zero", 4, {"too large"}},
      {"a task with a text", "weft train --task induction --data text.txt", 2, {"a task has no text", "--data text.txt"}},
      {"no name for a run", "weft train $tiny --out \"\"", 2, {"--out", "the value is empty"}},
      {"no run to go on with", "weft train --resume \"\"", 2, {"--resume", "the value is empty"}},
      {"no name of a text", "weft train --data \"\"", 2, {"--data", "the value is empty"}},
      {"no name of options", "weft train --config \"\"", 2, {"--config", "the value is empty"}},
      {"no name of a task", "weft train --task \"\"", 2, {"--task", "the value is empty"}},
      {"no name of shards", "weft data make --data text.txt --out \"\"", 2, {"--out", "the value is empty"}},
      {"no name of a kernel", "weft inspect model --kernel \"\"", 2, {"--kernel", "the value is empty"}},
      {"no name of another kernel", "weft inspect model --kernel a --diff \"\"", 2, {"--diff", "the value is empty"}},
      {"nothing to check", "weft check \"\"", 2, {"folder", "the value is empty"}},
      {"negative batch", "weft train --batch -4", 2, {"may not be negative: --batch -4"}},
      {"negative seed", "weft train $tiny --seed -1", 2, {"--seed", "-1"}},
      {"negative learning rate", "weft train $tiny --lr -1", 2, {"may not be negative: --lr -1"}},
      {"learning rate nan", "weft train $tiny --lr nan", 2, {"--lr", "nan"}},
      {"a learning rate that rises",
       "weft train $tiny --lr 1e-3 --min-lr 2e-3",
       2,
       {"the learning rate at the end is above its peak", "min_lr 0.002, lr 0.001", "--min-lr"}},
      {"negative top-k", "weft train $tiny --top-k -1", 2, {"may not be negative: --top-k -1"}},
      {"no width", "weft train --data text.txt --length 16 --width 0", 2, {"sizes must be positive", "width = 0"}},
      {"a million layers",
       "weft train --data text.txt --length 16 --layers 1000000",
       2,
       {"at most 10000 layers", "1000000 layers"}},
      {"a width of 2^40",
       "weft train --data text.txt --length 16 --width 1099511627776",
       2,
       {"at most 2^30", "width = 1099511627776"}},
      {"state of 300", "weft train --data text.txt --length 16 --state 300", 2, {"a state of at most 256 is supported", "300"}},
      // texts
      {"missing text", "weft train --data none.txt", 4, {"cannot read ", "/none.txt: No such file"}},
      {"folder for a text", "weft train --data model", 4, {"/model: not a folder of tokens", "weft data make"}},
      {"empty text", "weft train --data empty.txt", 4, {"empty.txt is empty", "--data FILE"}},
      {"text shorter than a window", "weft train --data short.txt", 4, {"short.txt: text too short", "--length"}},
      // devices
      {"no GPU", "weft train $tiny --device cuda", 3, {"CUDA driver is missing", "apt-get install"}},
      // models
      {"missing folder", "weft verify none", 4, {"none", "No such file"}},
      {"file for a folder", "weft verify text.txt", 4, {"text.txt", "Not a directory"}},
      {"no reference", "weft verify model", 4, {"reference.safetensors", "No such file"}},
      {"reference without logits", "weft verify nologits", 4, {"the reference lacks a tensor", "'logits'"}},
      {"no weights", "weft verify nomodel", 4, {"no model in nomodel", "neither model.safetensors nor"}},
      {"truncated weights", "weft verify cut", 4, {"cut/model.safetensors", "truncated inside the header"}},
      {"pickle", "weft verify pickle", 4, {"no model in pickle", "pytorch_model.bin is a pickle", "save_pretrained"}},
      {"missing shard", "weft verify noshard", 4, {"missing shard", "model-00001-of-00002.safetensors", "lm_head.weight"}},
      {"another architecture",
       "weft verify gpt2",
       4,
       {"gpt2/config.json", "model_type = \"gpt2\"; only \"mamba\", ", "are supported"}},
      {"misspelt key", "weft verify typo", 4, {"unknown key", "'hidden_sise'; did you mean 'hidden_size'?"}},
      {"missing keys", "weft verify sizes", 4, {"size keys are missing: num_hidden_layers, state_size"}},
      {"comma too many", "weft verify nojson", 4, {"nojson/config.json: not valid JSON", "line 2, column 1"}},
      {"number that is none", "weft verify barenan", 4, {"a number is expected", "layer_norm_epsilon = NaN"}},
      {"number in quotes", "weft verify nan", 4, {"a number is expected", "layer_norm_epsilon = \"NaN\""}},
      {"wrong shapes, all listed",
       "weft verify shapes",
       4,
       {"4 problems", "missing: backbone.layers.0.mixer.in_proj.bias (32,)",
        "missing: backbone.layers.0.mixer.out_proj.bias (8,)",
        "shape of backbone.layers.0.mixer.A_log: the file has (16, 2), the model (16, 3)",
        "shape of backbone.layers.0.mixer.x_proj.weight"}},
      {"sizes far from the weights",
       "weft verify huge",
       4,
       {"the configuration is that of another model", "4294967936 parameters", "768 elements"}},
      {"other values", "weft verify wrong", 1, {"logits", "FAILED", "1 of 1 checks failed"}},
      // runs
      {"resume from nothing", "weft train --resume model", 4, {"no training state", "model/state.json", "--out"}},
      {"resume from nowhere", "weft train --resume none", 4, {"resume: no such folder: none", "--out"}},
      {"damaged state", "weft train --resume badstate", 4, {"badstate/state.json: not valid JSON", "line 1"}},
      {"run in a file", "weft train $tiny --steps 2 --out text.txt", 4, {"text.txt"}},
      {"run below a file", "weft train $tiny --steps 2 --out text.txt/run", 4, {"text.txt/run"}},
      {"run where nothing may be written", "weft train $tiny --steps 2 --out /proc/run", 4, {"/proc/run"}},
      {"full disk",
       "ulimit -f 8; weft train $tiny --steps 2 --out full",
       4,
       {"cannot write ", "/full/checkpoints/step-2", "File too large"}},
      {"loss that is no number",
       "weft train $tiny --steps 300 --lr 1e30 --warmup 1 --clip 0",
       1,
       {"gave a value that is not finite", "--lr"}},
      {"output on a full disk", "weft train --help >/dev/full", 4, {"the output cannot be written"}},
      {"page on a full disk", kPage, 4, {"cannot write /dev/full", "not a regular file"}},
      {"preset misspelt", "weft train --preset tinny", 2, {"--preset: unknown word 'tinny'; did you mean 'tiny'?"}},
      {"key misspelt in --set", "weft train --set lerning_rate=1", 2, {"lerning_rate"}},
      {"key misspelt in --config", "weft train --config badoption.json", 4, {"badoption.json", "batchs", "did you mean"}},
      {"NaN in --config", "weft train --config nanoption.json", 4, {"nanoption.json", "--lr must be a finite number", "'NaN'"}},
      {"infinity in --config", "weft train --config infoption.json", 4, {"--clip must be a finite number", "'-Infinity'"}},
      {"missing --config", "weft train --config none.json", 4, {"none.json", "No such file"}},
      {"plot of nothing", "weft plot none", 4, {"none"}},
      // generation, evaluation, shards
      {"generate from nothing", "weft generate --tokens 3", 2, {"--from is required", "weft generate --help"}},
      {"generate from nowhere", "weft generate --from none", 4, {"none"}},
      {"generate from a file", "weft generate --from text.txt", 4, {"text.txt: not a folder", "weft train --out"}},
      {"generate from a weights file",
       "weft generate --from bytes/model.safetensors",
       4,
       {"bytes/model.safetensors: not a folder", "give the folder"}},
      {"a link to itself",
       "ln -s loop loop; weft generate --from loop",
       4,
       {"cannot use loop: Too many levels of symbolic links"}},
      {"generate from a pipe", "mkfifo pipe; weft generate --from pipe", 4, {"pipe: not a folder"}},
      {"evaluate a pipe", "weft eval --from pipe --data text.txt", 4, {"pipe: not a folder"}},
      {"resume from a pipe", "weft train --resume pipe", 4, {"pipe: not a folder"}},
      {"prompts that are compressed",
       "gzip -c text.txt >text.gz; weft generate --from bytes --prompt-file text.gz",
       4,
       {"text.gz: not a text", "compressed by gzip"}},
      {"prompts without a text",
       "printf '{\"text\": \"a\"}\\n{\"prompt\": \"b\"}\\n' >p.JSONL; weft generate --from bytes --prompt-file p.JSONL",
       4,
       {"p.JSONL: a line without a text", "line 2", "{\"text\": \"...\"}"}},
      {"prompts that are no JSON",
       "cp text.txt p.ndjson; weft generate --from bytes --prompt-file p.ndjson",
       4,
       {"p.ndjson: not valid JSON", "line 1"}},
      {"a compressed prompt", "gzip -c text.txt | weft generate --from bytes --prompt -", 4, {"compressed by gzip"}},
      {"temperature nan", "weft generate --from bytes --temperature nan", 2, {"--temperature: 'nan' is no finite number"}},
      {"temperature inf", "weft generate --from bytes --temperature inf", 2, {"--temperature: 'inf' is no finite number"}},
      {"top-p nan", "weft generate --from bytes --top-p nan", 2, {"--top-p: nan is not above 0 and at most 1"}},
      {"top-p above 1", "weft generate --from bytes --top-p 1.5", 2, {"--top-p: 1.5 is not above 0 and at most 1"}},
      {"temperature of a run nan", "weft train $tiny --temperature nan", 2, {"--temperature must be a finite number", "'nan'"}},
      {"negative top-p", "weft generate --from model --top-p -1", 2, {"--top-p: -1 is not above 0 and at most 1"}},
      {"tokens beyond 64 bits",
       "weft generate --from model --tokens 999999999999999999999",
       2,
       {"--tokens: 999999999999999999999 is beyond 64 bits"}},
      {"part misspelt",
       "weft eval --from model --data text.txt --part trainig",
       2,
       {"--part: unknown word 'trainig'; did you mean 'training'?"}},
      {"evaluation of a missing text", "weft eval --from bytes --data none.txt", 4, {"none.txt", "No such file"}},
      {"shards of what?", "weft data", 2, {"a subcommand is needed", "make, check"}},
      {"misspelt below a subcommand", "weft data chekc model", 2, {"unknown subcommand 'chekc'; did you mean 'check'?"}},
      {"no shards", "weft data check model", 4, {"model"}},
      {"vocabulary too large for the text",
       "weft data make --data text.txt --tokenizer unigram --vocab 100000 --out shards",
       4,
       {"text.txt"}},
      // environment
      {"unknown word of WEFT_LOG",
       "export WEFT_LOG=why,kernals; weft doctor",
       2,
       {"WEFT_LOG: unknown word 'kernals'; did you mean 'kernels'?"}},
      {"unknown word of WEFT_CHECK", "export WEFT_CHECK=nam; weft doctor", 2, {"WEFT_CHECK", "'nam'; did you mean 'nan'?"}},
      {"unknown word of WEFT_DEVICE",
       "export WEFT_DEVICE=cdua; weft doctor",
       2,
       {"WEFT_DEVICE: unknown word 'cdua'; did you mean 'cuda'?"}},
      {"unknown word of WEFT_ARENA", "export WEFT_ARENA=spilt; weft doctor", 2, {"WEFT_ARENA", "'spilt'"}},
      {"WEFT_FUSE is 0 or 1", "export WEFT_FUSE=yes; weft doctor", 2, {"WEFT_FUSE", "yes"}},
      {"WEFT_TARGET names versions", "export WEFT_TARGET=sm_90; weft doctor", 2, {"WEFT_TARGET", "sm_90", "sm_80, sm_90a"}},
  };
  for (const auto& row : rows) {
    SCOPED_TRACE(row.name);
    if (!missing_cuda_device() && row.code == 3) continue;
    if (std::string_view(row.command) == kPage && missing_library(CudaLibrary::nvrtc))
      continue;  // it ends before there is a page
    expect_words(shell(std::string(kTiny) + row.command), row.code, row.words);
  }
}

TEST_F(Program, EveryOptionHasHelpAndADefault) {
  const std::string all = shell("weft --help").text;
  std::istringstream commands(all.substr(std::min(all.find("Subcommands:\n"), all.size())));
  std::string command, line;
  std::getline(commands, line);
  int options = 0;
  while (commands >> command && std::getline(commands, line)) {
    const Outcome outcome = shell("weft " + command + " --help");
    EXPECT_EQ(outcome.code, 0);
    std::istringstream lines(outcome.text);
    while (std::getline(lines, line)) {
      if (!line.starts_with("  --")) continue;
      ++options;
      const bool has_default = line.find_first_of("=[") != line.npos;  // CLI11 writes =16, since 2.4 [16]
      EXPECT_TRUE(has_default || line.find(" REQUIRED ") != line.npos) << command << ": no default: " << line;
      EXPECT_NE(line.find_first_not_of(' ', std::min(line.find("  ", 4), line.size())), std::string::npos)
          << command << ": no help: " << line;
    }
  }
  EXPECT_GT(options, 40);
  EXPECT_EQ(shell("weft --version").code, 0);
}

TEST_F(Program, TrainsSavesResumesAndSamples) {
  std::string text;
  for (int i = 0; i < 400; ++i) text += "line " + std::to_string(i * 7 % 100) + " of the text\n";
  folder_.write("text.txt", text);
  const Outcome whole = shell(
      "weft train --data text.txt --steps 6 --batch 2 --length 16 --width 16 --layers 1 --state 4 --sample 20 --warmup 2 --out "
      "a");
  expect_words(whole, 0,
               {"step 6/6", "loss ", "tokens/s", "left", "validation loss", "bits per character", "saved: ", "sample"});
  EXPECT_EQ(whole.text.find('\x1b'), std::string::npos) << "no colours outside a terminal";
  expect_words(shell("weft train --resume a --steps 8 --sample 0 --out b"), 0, {"resumed after step 6"});
  EXPECT_TRUE(fs::exists(folder_ / "b/latest/state.json"));
}

TEST_F(Program, VerifyPassesAndFails) {
  const fs::path golden = fs::path(WEFT_SOURCE_DIR) / "tests/golden/mamba";
  expect_words(shell("weft verify " + golden.string()), 0, {"checks passed"});
  for (const char* file : {"config.json", "model.safetensors", "reference.safetensors"})
    fs::copy(golden / file, folder_ / file);
  TensorMap weights = read_safetensors(folder_ / "model.safetensors");
  weights.at("backbone.norm_f.weight").bytes[2] ^= std::byte(0x40);
  write_safetensors(folder_ / "model.safetensors", weights);
  expect_words(shell("weft verify ."), 1, {"FAILED"});
}

TEST_F(Program, DoctorSaysWhatThereIs) {
  expect_words(shell("weft doctor"), 0, {"CPU", "threads", "BLAS", "cpu, cuda, emu", "NVRTC"});
}

}  // namespace
}  // namespace weft
