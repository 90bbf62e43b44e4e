// Every kernel text that the table of ops and training a model need compiles for every architecture: no register is spilled, and
// registers and shared memory stay within their limits. Needs NVRTC, but no GPU. Without NVRTC: skipped with the reason, or, with
// WEFT_REQUIRE_NVRTC=1, a failure.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>

#include "autograd/plan.h"
#include "autograd/settings.h"
#include "jit/compiler.h"
#include "jit/driver.h"
#include "jit/parallel.h"
#include "tests/op_cases.h"
#include "tests/temp_folder.h"
#include "tools/weft.h"

namespace weft {
namespace {

// Limits: CUDA's programming guide, compute capabilities. Texts in f64, which gradient checks need and training does not, are
// compiled for the target most in use and the one that has most trouble with them: for all they would take as long as the others.
struct Target {
  const char* name;
  int shared;  // bytes a block may have at most
  bool doubles;
};
constexpr Target kTargets[] = {
    {"sm_80", 163 * 1024, false}, {"sm_90a", 227 * 1024, true}, {"sm_100", 227 * 1024, false}, {"sm_120", 99 * 1024, true}};
constexpr int kStaticShared = 48 * 1024;  // on every target
constexpr int kRegisters = 255, kFile = 65536;  // of a thread, of a block

// ---- what is compiled

// A text, and the most that one of its launches asks for.
struct Text {
  const CudaKernel* kernel;
  std::string where;  // that has it first
  unsigned threads = 0, shared = 0;
  bool in_double() const { return kernel->text.find("\nusing real = double;") != std::string::npos; }
};

class Texts {
 public:
  template <class Step>
  void add(const std::string& where, Step&& step) {
    plans_.push_back(plan_for(Device::cuda, std::forward<Step>(step)));
    for (const PlannedKernel& k : plans_.back()->kernels)
      if (k.cuda) add(where, *k.cuda);
    plans_.back()->slots = {}, plans_.back()->results = {};
  }
  const std::vector<Text>& all() const { return texts_; }

 private:
  void add(const std::string& where, const CudaKernel& kernel) {
    // The first line defines KERNEL, the name, which changes no instruction.
    const std::string_view body = std::string_view(kernel.text).substr(kernel.text.find('\n', 1));
    const auto [known, is_new] = index_.try_emplace(body, texts_.size());
    if (is_new) texts_.push_back({&kernel, where});
    Text& t = texts_[known->second];
    t.threads = std::max(t.threads, kernel.block[0] * kernel.block[1] * kernel.block[2]);
    t.shared = std::max(t.shared, kernel.shared);
  }
  std::vector<std::unique_ptr<Plan>> plans_;  // own the kernels
  std::map<std::string_view, std::size_t> index_;
  std::vector<Text> texts_;
};

// A value from outside; what it holds does not matter.
Tensor given(const Shape& shape, DType dtype) {
  const std::vector<std::byte> zero(std::size_t(shape.numel()) * size_of(dtype));
  return Tensor::from_bytes(zero.data(), dtype, shape);
}

// What check_op runs: values in every precision, gradients of a weighted sum in f64 and f32, in f64 without fusion too.
void add_op(Texts& texts, const OpRow& row, const OpCase& c) {
  Rng frozen(3);
  const UseRng use(frozen);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    if (dtype == DType::bf16 && !row.reference) continue;
    std::vector<Tensor> in;
    for (const OpInput& i : c.inputs) in.push_back(given(i.shape, is_integer(i.integer) ? i.integer : dtype));
    std::vector<Arg> reals;
    for (const Tensor& t : in)
      if (is_real(t.dtype())) reals.emplace_back(t);
    const std::string where = fmt::format("{}, {}, {}", row.name, c.name, name_of(dtype));
    texts.add(where, [&] { return row.fn(in); });
    const auto gradients = [&] {
      const Tensor y = row.fn(in), weights = given(y.shape(), DType::f64);
      std::vector<Tensor> out = grad(sum(cast(y, DType::f64) * weights), reals);
      out.push_back(y);
      return out;
    };
    if (dtype != DType::bf16) texts.add(where + ", gradient", gradients);
    if (dtype != DType::f64) continue;
    settings().fuse = false;
    texts.add(where + ", gradient, WEFT_FUSE=0", gradients);
    settings().fuse = true;
  }
}

// Training, evaluation and generation.
void add_model(Texts& texts, const std::string& name, const MambaConfig& config, bool with_masks, bool only_training = false) {
  Mamba model(config);
  if (with_masks) {
    for (std::int64_t l = 0; l < config.layers; ++l) {
      MambaMixer& m = model.block(l).mixer();
      for (Linear* linear : {&m.in_proj(), &m.x_proj(), &m.dt_proj(), &m.out_proj()}) linear->mask({});
      m.conv1d().mask({});
    }
  }
  AdamW opt(model.parameters(), {.lr = 1e-3, .weight_decay = 0.1, .clip_norm = 1});
  const Tensor inputs = given({4, 64}, DType::i64), targets = given({4, 64}, DType::i64);
  texts.add(name + ", training", [&] {
    Tensor loss = cross_entropy(model(inputs), targets);
    if (with_masks) loss = loss + mask_penalty(model.masks());
    backward(loss);
    opt.step();
    return std::pair(loss, opt.grad_norm());
  });
  if (only_training) return;
  texts.add(name + ", accumulation", [&] {
    const Tensor loss = cross_entropy(model(inputs), targets);
    backward(loss);
    return loss;
  });
  const Evaluating scope(model);
  texts.add(name + ", evaluation", [&] {
    return no_grad([&] { return cross_entropy(model(inputs), targets, {.reduction = Reduction::sum}); });
  });
  const MambaCache cache(config, 1);
  texts.add(name + ", prompt", [&] { return model.prefill(given({1, 17}, DType::i64), cache); });
  texts.add(name + ", next token", [&] { return model.step(given({1, 1}, DType::i64), cache); });
}

// ---- compiling

struct Resources {
  int registers = 0;           // of a thread; 0: the text does not compile
  int spills = 0, shared = 0;  // bytes of a thread, of a block
  std::string log;
};

// The largest number that stands before `words`: "Used 24 registers".
int largest(std::string_view log, std::string_view words) {
  int found = 0;
  for (std::size_t at = log.find(words); at != std::string_view::npos; at = log.find(words, at + 1)) {
    std::size_t begin = at;
    while (begin > 0 && std::isdigit(static_cast<unsigned char>(log[begin - 1]))) --begin;
    found = std::max(found, std::atoi(std::string(log.substr(begin, at - begin)).c_str()));
  }
  return found;
}

// The part of the log that speaks of one kernel.
Resources resources_of(std::string_view log, std::string_view kernel) {
  const std::string_view title = "Compiling entry function '";
  const std::size_t begin = log.find(fmt::format("{}{}'", title, kernel));
  if (begin == std::string_view::npos) return {};
  const std::string_view part = log.substr(begin, log.find(title, begin + 1) - begin);
  return {largest(part, " registers"), largest(part, " bytes spill stores"), largest(part, " bytes smem"), std::string(part)};
}

// Compiles texts in one program, each in a namespace, which takes a third of the time; if that fails, one by one, to name the
// one with the mistake.
constexpr std::size_t kBatch = 16;
void compile_batch(const Target& target, std::span<const Text* const> batch, Resources* out, std::string& errors) {
  std::string source(embedded_text("jit/prelude.cuh"));
  for (std::size_t i = 0; i < batch.size(); ++i)
    source += fmt::format("\n#undef KERNEL\n#undef PARAMETERS\nnamespace text_{} {{\n{}\n}}\n", i, batch[i]->kernel->text);
  try {
    const Compiled compiled = compile("batch", source, target.name);
    for (std::size_t i = 0; i < batch.size(); ++i) out[i] = resources_of(compiled.log, batch[i]->kernel->name);
    if (compiled.log.find("warning") != std::string::npos) errors += compiled.log;
  } catch (const Error& e) {
    if (batch.size() == 1) errors += fmt::format("{}: {}\n", batch[0]->where, e.what());
    else for (std::size_t i = 0; i < batch.size(); ++i) compile_batch(target, batch.subspan(i, 1), out + i, errors);
  }
}

std::vector<Resources> compile_texts(const Target& target, std::span<const Text* const> texts) {
  std::vector<Resources> out(texts.size());
  std::vector<std::string> errors((texts.size() + kBatch - 1) / kBatch);
  parallel(std::int64_t(errors.size()), [&](std::int64_t b) {
    const std::size_t first = std::size_t(b) * kBatch;
    compile_batch(target, texts.subspan(first, std::min(kBatch, texts.size() - first)), &out[first], errors[std::size_t(b)]);
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "") << "for " << target.name;
  return out;
}

void check_limits(const Target& target, const Text& t, const Resources& r) {
  SCOPED_TRACE(fmt::format("{} for {} ({})\n{}", t.kernel->name, target.name, t.where, r.log));
  EXPECT_GT(r.registers, 0);  // else the log says nothing of it
  EXPECT_EQ(r.spills, 0);
  EXPECT_LE(r.registers, t.kernel->registers > 0 ? t.kernel->registers : kRegisters);
  EXPECT_LE(unsigned(r.registers) * t.threads, unsigned(kFile));
  EXPECT_LE(r.shared, kStaticShared);
  EXPECT_LE(unsigned(r.shared) + t.shared, unsigned(target.shared));
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void check(std::span<const Target> targets, const Texts& texts) {
  const TempFolder cache;  // empty: the time is that of compiling
  setenv("WEFT_CACHE", (cache / "cache").c_str(), 1);
  for (const Target& target : targets) {
    const auto begin = std::chrono::steady_clock::now();
    std::vector<const Text*> wanted;
    for (const Text& t : texts.all())
      if (target.doubles || !t.in_double()) wanted.push_back(&t);
    // The longest first, so that no thread is left with them at the end.
    std::stable_sort(wanted.begin(), wanted.end(), [](const Text* a, const Text* b) { return a->kernel->text.size() > b->kernel->text.size(); });
    const std::vector<Resources> found = compile_texts(target, wanted);
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < wanted.size(); ++i) check_limits(target, *wanted[i], found[i]), order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return found[a].registers > found[b].registers; });
    fmt::print("{:7} {:4} texts, {:5.1f} s; most registers:", target.name, wanted.size(), seconds_since(begin));
    for (const std::size_t i : std::span(order).first(std::min<std::size_t>(5, order.size())))
      fmt::print(" {} ({})", wanted[i]->kernel->name, found[i].registers);
    fmt::print("\n");
  }
  unsetenv("WEFT_CACHE");
}

class Kernels : public testing::Test {
 protected:
  void SetUp() override {
    const auto missing = missing_library(CudaLibrary::nvrtc);
    if (!missing) return;
    const char* required = std::getenv("WEFT_REQUIRE_NVRTC");
    if (required && std::string_view(required) == "1") FAIL() << "WEFT_REQUIRE_NVRTC=1, but " << *missing;
    GTEST_SKIP() << *missing;
  }
};
using SlowKernels = Kernels;

TEST_F(Kernels, OfATrainingStepOfMamba) {
  Texts texts;
  add_model(texts, "Mamba", {.vocab = 256, .width = 128, .layers = 1, .activations = DType::bf16}, false, true);
  check(std::span(kTargets).first(2), texts);
}

TEST_F(SlowKernels, OfAllOpsAndModels) {
  Texts texts;
  const auto begin = std::chrono::steady_clock::now();
  for (const OpRow& row : op_rows())
    for (const OpCase& c : row.cases) add_op(texts, row, c);
  const MambaConfig small{.vocab = 256, .width = 128, .layers = 2}, wide{.vocab = 8000, .width = 768, .layers = 2, .tie = false};
  for (const DType activations : {DType::f32, DType::bf16}) {
    for (MambaConfig config : {small, wide}) {
      config.activations = activations;
      add_model(texts, fmt::format("Mamba, width {}, {}", config.width, name_of(activations)), config, false);
    }
    MambaConfig masked = small;
    masked.activations = activations;
    add_model(texts, fmt::format("Mamba with masks, {}", name_of(activations)), masked, true);
  }
  add_model(texts, "Mamba, f64", {.vocab = 50, .width = 24, .layers = 2, .state = 8, .bias = true, .dtype = DType::f64}, false);
  fmt::print("planned in {:.1f} s\n", seconds_since(begin));
  check(kTargets, texts);
}

}  // namespace
}  // namespace weft
