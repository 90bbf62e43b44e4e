// Every kernel text that the table of ops and training a model need compiles for every architecture: no register is
// spilled, and registers and shared memory stay within their limits. Needs NVRTC, but no GPU. Without NVRTC: skipped with the
// reason, or, with WEFT_REQUIRE_NVRTC=1, a failure.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>

#include "autograd/context.h"
#include "autograd/plan.h"
#include "autograd/settings.h"
#include "jit/compiler.h"
#include "jit/driver.h"
#include "jit/parallel.h"
#include "tests/assembler.h"
#include "tests/op_cases.h"
#include "tests/temp_folder.h"
#include "tools/weft.h"

namespace weft {
namespace {

// Limits: CUDA's programming guide, compute capabilities.
struct Architecture {
  const char* name;
  int shared;  // bytes a block may have at most
};
// NVRTC makes the same PTX for both of a pair, as long as a text does not ask for the architecture: it has one optimizer up to
// 9.x and one from 10.0 on. That is two thirds of the time, so a text is compiled as for a run for the first, and its PTX is
// assembled for the second.
struct Pair {
  Architecture first, second;
};
constexpr Pair kPairs[] = {{{"sm_90a", 227 * 1024}, {"sm_80", 163 * 1024}}, {{"sm_120", 99 * 1024}, {"sm_100", 227 * 1024}}};
constexpr int kStaticShared = 48 * 1024;        // on every target
constexpr int kRegisters = 255, kFile = 65536;  // of a thread, of a block

// ---- what is compiled -------------------------------------------------------------------------------------------------------

// A text, and the most that one of its launches asks for.
struct Text {
  const CudaKernel* kernel;
  std::string where;  // that has it first
  unsigned threads = 0, shared = 0;
};

// Without the first line, which defines KERNEL, the name, and changes no instruction.
std::string_view body_of(const CudaKernel& kernel) { return std::string_view(kernel.text).substr(kernel.text.find('\n', 1)); }

class Texts {
 public:
  explicit Texts(const char* target = "sm_80") : target_(target_for(target)) {}
  template <class Step>
  void add(const std::string& where, Step&& step) {
    plans_.push_back(plan_for(target_, std::forward<Step>(step)));
    for (const PlannedKernel& k : plans_.back()->kernels)
      if (const auto* cuda = std::get_if<CudaKernelPointer>(&k.work)) add(where, **cuda);
    plans_.back()->slots = {}, plans_.back()->results = {};
  }
  const std::vector<Text>& all() const { return texts_; }

 private:
  void add(const std::string& where, const CudaKernel& kernel) {
    const auto [known, is_new] = index_.try_emplace(body_of(kernel), texts_.size());
    if (is_new) texts_.push_back({&kernel, where});
    Text& t = texts_[known->second];
    t.threads = std::max(t.threads, kernel.block[0] * kernel.block[1] * kernel.block[2]);
    t.shared = std::max(t.shared, kernel.shared);
  }
  Target target_;
  std::vector<std::unique_ptr<Plan>> plans_;  // own the kernels
  std::map<std::string_view, std::size_t> index_;
  std::vector<Text> texts_;
};

// A value from outside; what it holds does not matter.
Tensor given(const Shape& shape, DType dtype) {
  const std::vector<std::byte> zero(std::size_t(shape.numel()) * size_of(dtype));
  return Tensor::from_bytes(zero.data(), dtype, shape);
}

// What check_op runs on a GPU: value and gradients in every precision; in f32 the value alone, and all without fusion.
void add_op(Texts& texts, const OpRow& row, const OpCase& c) {
  Rng frozen(3);
  const UseRng use(frozen);
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    if (dtype == DType::bf16 && !row.options.check_bf16) continue;
    std::vector<Tensor> in;
    for (const OpInput& i : c.inputs) in.push_back(given(i.shape, is_integer(i.integer) ? i.integer : dtype));
    std::vector<Arg> reals;
    for (const Tensor& t : in)
      if (is_real(t.dtype())) reals.emplace_back(t);
    const std::string where = fmt::format("{}, {}, {}", row.name, c.name, name_of(dtype));
    const auto results = [&] {
      const Tensor y = row.fn(in);
      std::vector<Tensor> out;
      if (is_real(y.dtype()) && !reals.empty())
        out = grad(y, cast(given(y.shape(), DType::f64), y.dtype()), reals, Unused::zeros);
      out.push_back(y);
      return out;
    };
    texts.add(where + ", gradient", results);
    if (dtype != DType::f32) continue;
    if (row.reference) texts.add(where, [&] { return row.fn(in); });
    if (!c.gradient) continue;
    settings().fuse = false;
    texts.add(where + ", gradient, WEFT_FUSE=0", results);
    settings().fuse = true;
  }
}

// Training, evaluation and generation.
void add_model(Texts& texts, const std::string& name, const MambaConfig& config, bool with_masks, bool only_training = false) {
  Mamba model(config);
  if (with_masks)
    for (WeightedModule& layer : model.parts<WeightedModule>())
      if (layer.path().find(".mixer.") != std::string::npos) layer.mask({});
  AdamW opt(model.parameters(), {.lr = 1e-3, .weight_decay = 0.1, .clip_norm = 1});
  const Tensor inputs = given({4, 64}, DType::i64), targets = given({4, 64}, DType::i64);
  texts.add(name + ", training", [&] {
    Tensor loss = cross_entropy(model(inputs), targets);
    if (with_masks) loss = loss + mask_penalty(model.parts<GumbelMask>());
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
  texts.add(name + ", evaluation",
            [&] { return no_grad([&] { return cross_entropy(model(inputs), targets, {.reduction = Reduction::sum}); }); });
  const MambaCache cache(config, 1);
  texts.add(name + ", prompt", [&] { return model.prefill(given({1, 17}, DType::i64), cache); });
  texts.add(name + ", next token", [&] { return model.step(given({1, 1}, DType::i64), cache); });
}

// ---- compiling --------------------------------------------------------------------------------------------------------------

struct Resources {
  int registers = 0;           // of a thread; 0: the text does not compile
  int spills = 0, shared = 0;  // bytes of a thread, of a block
  std::string log;
  bool same_as(const Resources& o) const { return registers == o.registers && spills == o.spills && shared == o.shared; }
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

// For the targets of a pair.
using Found = std::array<Resources, 2>;

// PTX for one target as PTX for another, for which `follow` of the prelude may be nothing.
std::string for_target(std::string ptx, std::string_view before, std::string_view after) {
  if (after == "sm_80")
    for (std::size_t at; (at = ptx.find("griddepcontrol")) != std::string::npos;) ptx.erase(at, ptx.find(';', at) + 1 - at);
  const std::string line = fmt::format(".target {}", before);
  const std::size_t at = ptx.find(line);
  return at == std::string::npos ? ptx : ptx.replace(at, line.size(), fmt::format(".target {}", after));
}

// A kernel may be launched before the one ahead of it has ended: it follows that before it touches memory.
std::string touches_before_it_follows(std::string_view ptx) {
  std::string errors, entry;
  for (std::size_t begin = 0; begin < ptx.size();) {
    const std::size_t end = std::min(ptx.find('\n', begin), ptx.size());
    std::string_view l = ptx.substr(begin, end - begin);
    begin = end + 1;
    l.remove_prefix(std::min(l.find_first_not_of(" \t"), l.size()));
    if (const std::size_t at = l.find(".entry "); at != l.npos) entry = l.substr(at);
    if (entry.empty()) continue;
    if (l.starts_with("griddepcontrol.wait")) entry.clear();
    bool touches = l.starts_with("ld.") && !l.starts_with("ld.param");
    for (const char* word : {"st.", "red.", "atom.", "cp.", "prefetch", "bra", "ret"}) touches |= l.starts_with(word);
    if (touches && !entry.empty()) errors += fmt::format("{} has '{}' before it waits\n", std::exchange(entry, ""), l);
  }
  return errors;
}

// Texts that are one program, each in a namespace, which takes half of the time. If it does not compile: one by one, to name
// the text with the mistake. `in_full`: compiled for the second target too, which must give what the short way does.
void compile_batch(const Pair& pair, std::span<const Text* const> batch, bool in_full, Found* out, std::string& errors) {
  std::string source(embedded_text("jit/prelude.cuh"));
  for (std::size_t i = 0; i < batch.size(); ++i)
    source += fmt::format("\n#undef KERNEL\n#undef PARAMETERS\nnamespace text_{} {{\n{}\n}}\n", i, batch[i]->kernel->text);
  try {
    const Compiled first = compile("batch", source, pair.first.name, true);
    const std::string full = in_full || !has_assembler() ? compile("batch", source, pair.second.name).log : "";
    const std::string ptx = for_target(first.ptx, pair.first.name, pair.second.name);
    if (pair.second.name == std::string_view("sm_80")) errors += touches_before_it_follows(first.ptx);
    const std::string log = has_assembler() ? assemble(ptx, pair.second.name) : full;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      const std::string& name = batch[i]->kernel->name;
      out[i] = {resources_of(first.log, name), resources_of(log, name)};
      if (!full.empty() && !out[i][1].same_as(resources_of(full, name)))
        errors += fmt::format("{} has other registers when compiled in full\n", name);
    }
    for (const std::string& l : {first.log, log})
      if (l.find("warning") != std::string::npos) errors += l;
  } catch (const Error& e) {
    if (batch.size() == 1)
      errors += fmt::format("{}: {}\n", batch[0]->where, e.what());
    else
      for (std::size_t i = 0; i < batch.size(); ++i) compile_batch(pair, batch.subspan(i, 1), in_full, out + i, errors);
  }
}

// Every text for both targets; some batches in full, one of scans among them, and all where there is no assembler.
std::vector<Found> compile_texts(const Pair& pair, std::span<const Text* const> texts) {
  constexpr std::size_t kBatch = 16, kInFull = 40;
  std::vector<Found> out(texts.size());
  std::vector<std::string> errors((texts.size() + kBatch - 1) / kBatch);
  parallel(std::int64_t(errors.size()), [&](std::int64_t b) {
    const std::size_t first = std::size_t(b) * kBatch;
    const auto batch = texts.subspan(first, std::min(kBatch, texts.size() - first));
    compile_batch(pair, batch, std::size_t(b) % kInFull == std::min(kInFull, errors.size()) / 4, &out[first],
                  errors[std::size_t(b)]);
  });
  for (const std::string& e : errors) EXPECT_EQ(e, "") << "for " << pair.first.name << " and " << pair.second.name;
  return out;
}

void check_limits(const Architecture& target, const Text& t, const Resources& r) {
  SCOPED_TRACE(fmt::format("{} for {} ({})\n{}", t.kernel->name, target.name, t.where, r.log));
  EXPECT_GT(r.registers, 0);  // else the log says nothing of it
  EXPECT_EQ(r.spills, 0);
  EXPECT_LE(r.registers, t.kernel->registers > 0 ? t.kernel->registers : kRegisters);
  EXPECT_LE(unsigned(r.registers) * t.threads, unsigned(kFile));
  EXPECT_LE(r.shared, kStaticShared);
  EXPECT_LE(unsigned(r.shared) + t.shared, unsigned(target.shared));
}

// One of `share` texts, chosen by what they are: another text does not change which.
void check(std::span<const Pair> pairs, const Texts& texts, std::size_t share = 1) {
  const TempFolder cache;  // empty: the time is that of compiling
  setenv("WEFT_CACHE", (cache / "cache").c_str(), 1);
  // The longest first, so that no thread is left with them at the end.
  std::vector<const Text*> all;
  for (const Text& t : texts.all()) {
    if (std::hash<std::string_view>()(body_of(*t.kernel)) % share == 0) all.push_back(&t);
    EXPECT_EQ(t.kernel->text.find("__CUDA_ARCH__"), std::string::npos) << t.where << ": its PTX is not that of a pair";
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Text* a, const Text* b) { return a->kernel->text.size() > b->kernel->text.size(); });
  for (const Pair& pair : pairs) {
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<Found> found = compile_texts(pair, all);
    fmt::print("{:4} texts for {} and {}: {:.1f} s\n", all.size(), pair.first.name, pair.second.name, seconds_since(begin));
    for (const std::size_t k : {0, 1}) {
      const Architecture& target = k == 0 ? pair.first : pair.second;
      std::vector<std::size_t> order;
      for (std::size_t i = 0; i < all.size(); ++i) check_limits(target, *all[i], found[i][k]), order.push_back(i);
      std::stable_sort(order.begin(), order.end(),
                       [&](std::size_t a, std::size_t b) { return found[a][k].registers > found[b][k].registers; });
      fmt::print("{:7} most registers:", target.name);
      for (const std::size_t i : std::span(order).first(std::min<std::size_t>(5, order.size())))
        fmt::print(" {} ({})", all[i]->kernel->name, found[i][k].registers);
      fmt::print("\n");
    }
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
using DeepKernels = Kernels;

// Forward and backward of heads of these sizes: causal, and with holes whose gradients are wanted.
void add_attention(Texts& texts, DType dtype, std::int64_t dk, std::int64_t dv, std::int64_t length, bool holes) {
  const Tensor q = given({1, length, 2, dk}, dtype), k = given({1, length, 1, dk}, dtype), v = given({1, length, 1, dv}, dtype);
  const DType wide = dtype == DType::f64 ? DType::f64 : DType::f32;
  const Tensor bias = given({2, length}, wide), gain = given({2}, wide), segments = given({1, length}, DType::i64);
  const auto add = [&](const char* what, const AttentionOptions& options, std::vector<Arg> inputs) {
    inputs.insert(inputs.end(), {q, k, v});
    texts.add(fmt::format("attention, {} and {} features, {} places, {}, {}", dk, dv, length, name_of(dtype), what),
              [&] { return grad(sum(attention(q, k, v, options)), inputs); });
  };
  add("causal", {.causal = true}, {});
  if (!holes) return;
  add("packed, soft cap", {.causal = true, .segments = segments, .score = [](Expr s) { return 30.f * tanh(s / 30.f); }}, {});
  add("bias and slopes",
      {.causal = true,
       .score = [&](Expr s, Index, Index h, Index i, Index j) { return s + bias(h, i - j) + gain(h) * to_real(i - j); }},
      {bias, gain});
  add("weight", {.causal = true, .weight = [](Index, Index, Index i, Index j) { return to_real(i - j); }}, {});
}

TEST_F(SlowKernels, OfAttention) {
  Texts texts;
  for (const auto& [dk, dv] : {std::pair{16, 16}, {32, 32}, {64, 64}, {64, 128}, {96, 96}, {128, 128}, {256, 256}, {8, 256}})
    for (const DType dtype : {DType::bf16, DType::f32, DType::f64})
      add_attention(texts, dtype, dk, dv, 512, dk + dv <= 192);  // holes of larger heads spill a few bytes
  add_attention(texts, DType::bf16, 64, 64, 320, true);          // both passes in one launch
  check(kPairs, texts);
}

// Those of wgmma, for which neither another target nor a warning that products wait for each other (C7510 and above) will do.
TEST_F(SlowKernels, OfAttentionForHopper) {
  Texts texts("sm_90a");
  for (const auto& [dk, dv] : {std::pair{16, 40}, {64, 64}, {64, 128}, {128, 64}, {96, 96}, {128, 128}, {8, 248}})
    add_attention(texts, DType::bf16, dk, dv, 512, true);
  add_attention(texts, DType::bf16, 64, 64, 320, true);
  std::vector<const Text*> products;
  for (const Text& t : texts.all())
    if (t.kernel->text.find("Wgmma<") != std::string::npos) products.push_back(&t);
  EXPECT_GT(products.size(), 60u);
  std::vector<std::string> logs(products.size());
  parallel(std::int64_t(products.size()), [&](std::int64_t k) {
    const CudaKernel& kernel = *products[std::size_t(k)]->kernel;
    logs[std::size_t(k)] = compile(kernel.name, complete_text(kernel), kPairs[0].first.name).log;
  });
  for (std::size_t k = 0; k < products.size(); ++k) {
    check_limits(kPairs[0].first, *products[k], resources_of(logs[k], products[k]->kernel->name));
    EXPECT_EQ(logs[k].find("(C75"), std::string::npos) << logs[k];
  }
}

TEST_F(Kernels, OfATrainingStepOfMamba) {
  Texts texts;
  add_model(texts, "Mamba", {.vocab = 256, .width = 128, .layers = 1, .activations = DType::bf16}, false, true);
  check(std::span(kPairs).first(1), texts);
}

void add_everything(Texts& texts) {
  const auto begin = std::chrono::steady_clock::now();
  for (const OpRow& row : op_rows())
    for (const OpCase& c : row.cases) add_op(texts, row, c);
  const MambaConfig small{.vocab = 256, .width = 128, .layers = 2},
      wide{.vocab = 8000, .width = 768, .layers = 2, .tie = false};
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
}

TEST_F(SlowKernels, OfATenthOfAllOpsAndModels) {
  Texts texts;
  add_everything(texts);
  check(kPairs, texts, 10);
}

TEST_F(DeepKernels, OfAllOpsAndModels) {
  Texts texts;
  add_everything(texts);
  check(kPairs, texts);
}

}  // namespace
}  // namespace weft
