// The performance of kernels without a GPU: what the emulated device counts in fixed small cases is held to tests/budget.json.
// WEFT_UPDATE_BUDGET=1 rewrites the file.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "jit/compiler.h"
#include "jit/emulator/device.h"
#include "ops/ops.h"
#include "optim/adamw.h"

namespace weft {
namespace {

constexpr const char* kFile = WEFT_SOURCE_DIR "/tests/budget.json";

// Counter by name of each kernel: "scan, bf16: scan_forward".
using Budget = std::map<std::string, std::map<std::string, std::uint64_t>>;

// What has grown against the budget, a line each (kernels that it does not have too), and what has shrunk.
struct Difference {
  std::string grown, shrunk;
};
Difference difference(const Budget& budget, const Budget& now) {
  Difference d;
  for (const auto& [kernel, counters] : now) {
    const auto allowed = budget.find(kernel);
    if (allowed == budget.end()) {
      d.grown += fmt::format("  {}: not in the budget\n", kernel);
      continue;
    }
    for (const auto& [name, value] : counters) {
      const auto limit = allowed->second.find(name);
      const std::uint64_t before = limit == allowed->second.end() ? 0 : limit->second;
      if (value == before) continue;
      const std::string change = before ? fmt::format("{:+.2f} %", 100 * (double(value) / double(before) - 1)) : "new";
      (value > before ? d.grown : d.shrunk) += fmt::format("  {}: {} {} -> {} ({})\n", kernel, name, before, value, change);
    }
  }
  for (const auto& [kernel, counters] : budget)
    if (!now.contains(kernel)) d.shrunk += fmt::format("  {}: no such kernel any more\n", kernel);
  return d;
}

TEST(Budget, Differences) {
  const Budget budget{{"a", {{"global_read", 100}, {"bank_conflicts", 0}}}, {"b", {{"global_read", 5}}}};
  EXPECT_EQ(difference(budget, budget).grown + difference(budget, budget).shrunk, "");
  const Difference d = difference(budget, {{"a", {{"global_read", 99}, {"bank_conflicts", 7}}}, {"c", {{"global_read", 5}}}});
  EXPECT_EQ(d.grown, "  a: bank_conflicts 0 -> 7 (new)\n  c: not in the budget\n");
  EXPECT_EQ(d.shrunk, "  a: global_read 100 -> 99 (-1.00 %)\n  b: no such kernel any more\n");
  EXPECT_EQ(difference(budget, {{"a", {{"global_read", 110}}}, {"b", {}}}).grown, "  a: global_read 100 -> 110 (+10.00 %)\n");
}

// ---- the cases --------------------------------------------------------------------------------------------------------------

Tensor values(const Shape& shape, DType dtype, double phase) {
  std::vector<float> v(std::size_t(shape.numel()));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = float(std::sin(0.37 * double(i + 1) + phase));
  return run([&] { return cast(Tensor::from(v, shape), dtype); });
}
Tensor labels(std::int64_t rows, std::int64_t classes) {
  std::vector<std::int64_t> v(static_cast<std::size_t>(rows));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = std::int64_t(i * 7919) % classes;
  return Tensor::from(v, {rows});
}

using Step = std::function<std::vector<Tensor>()>;

// The op's own value too, or what computes it would be left out.
std::vector<Tensor> both_ways(const Tensor& out, const Tensor& upstream, std::vector<Arg> inputs) {
  std::vector<Tensor> all = grad(out, upstream, std::move(inputs));
  all.push_back(out);
  return all;
}

Step scan_step(DType dtype, std::int64_t b, std::int64_t t, std::int64_t i, std::int64_t n) {
  const Tensor u = values({b, t, i}, dtype, 0), delta = values({b, t, i}, dtype, 1), z = values({b, t, i}, dtype, 2),
               B = values({b, t, n}, dtype, 3), C = values({b, t, n}, dtype, 4), g = values({b, t, i}, dtype, 5),
               A = values({i, n}, DType::f32, 6), D = values({i}, DType::f32, 7), bias = values({i}, DType::f32, 8);
  return [=] {
    return both_ways(scan(u, delta, A - 1.5, B, C, {.D = D, .delta = softplus_bias(bias), .out = gate(z)}), g,
                     {u, delta, A, B, C, D, bias, z});
  };
}
Step conv1d_step(DType dtype, std::int64_t t, std::int64_t width) {
  const Tensor x = values({2, t, 64}, dtype, 0), g = values({2, t, 64}, dtype, 1), weight = values({64, width}, DType::f32, 2),
               bias = values({64}, DType::f32, 3);
  return [=] { return both_ways(conv1d(x, weight, bias, {.silu = true}), g, {x, weight, bias}); };
}
Step conv1d_packed_step(DType dtype) {
  const Tensor x = values({2, 64, 64}, dtype, 0), g = values({2, 64, 64}, dtype, 1), weight = values({64, 4}, DType::f32, 2);
  std::vector<std::int64_t> ids(2 * 64);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = std::int64_t(i % 64 / 7);
  const Tensor segments = Tensor::from(ids, {2, 64});
  return [=] { return both_ways(conv1d(x, weight, Tensor{}, {.silu = true, .segments = segments}), g, {x, weight}); };
}
// The gradient of the input alone: of the output, or of the last inputs.
Step conv1d_input_step(bool of_last) {
  const Tensor x = values({2, 64, 64}, DType::f32, 0), g = values({2, of_last ? 3 : 64, 64}, DType::f32, 1),
               weight = values({64, 4}, DType::f32, 2);
  return [=] {
    Tensor last;
    const Tensor y = conv1d(x, weight, Tensor{}, {.silu = true, .last = &last});
    return grad(of_last ? last : y, g, {x});
  };
}
Step norm_step(DType dtype, bool centered) {
  const Tensor x = values({64, 256}, dtype, 0), g = values({64, 256}, dtype, 1), weight = values({256}, DType::f32, 2),
               bias = values({256}, DType::f32, 3);
  return [=] {
    if (!centered) return both_ways(rms_norm(x, weight), g, {x, weight});
    return both_ways(layer_norm(x, weight, bias), g, {x, weight, bias});
  };
}
Step gated_norm_step(DType dtype) {
  const Tensor x = values({64, 256}, dtype, 0), g = values({64, 256}, dtype, 1), weight = values({256}, DType::f32, 2),
               z = values({64, 256}, dtype, 3);
  return [=] { return both_ways(rms_norm(x, weight, 1e-5, {}, {}, gate(z)), g, {x, weight, z}); };
}
Step cross_entropy_step(DType dtype, double smoothing) {
  const Tensor logits = values({32, 1000}, dtype, 0), targets = labels(32, 1000);
  return [=] {
    const Tensor loss = cross_entropy(logits, targets, {.label_smoothing = smoothing});
    return std::vector{loss, grad(loss, {logits})[0]};
  };
}
Step embedding_step() {
  const Tensor table = values({600, 8}, DType::f32, 0), ids = labels(90, 600), g = values({90, 8}, DType::f32, 1);
  return [=] { return both_ways(embedding(table, ids), g, {table}); };
}
Step softmax_step(DType dtype) {
  const Tensor x = values({64, 256}, dtype, 0), g = values({64, 256}, dtype, 1);
  return [=] {
    std::vector<Tensor> all = both_ways(softmax(x, {-1}), g, {x});
    all.push_back(logsumexp(x, {-1}));
    return all;
  };
}
Step reduce_step(DType dtype) {
  const Tensor x = values({96, 160}, dtype, 0);
  return [=] { return std::vector{sum(x, {0}), sum(x, {1}), max(x, {0}), max(x, {1})}; };
}
Step random_step() {
  const Tensor x = values({64, 33}, DType::f32, 0);
  return [=] { return std::vector{dropout(x, 0.4), normal({40, 8})}; };
}
Step adamw_step() {
  std::vector<Param> params;
  for (const Shape& shape : {Shape{64, 64}, Shape{100}, Shape{1}, Shape{33, 65}}) {
    const Tensor initial = values(shape, DType::f32, double(params.size()));
    run([&] { assign(params.emplace_back(shape), initial); });
  }
  const auto optimizer = std::make_shared<AdamW>(params);
  return [=] {
    Tensor loss;
    for (const Param& p : params) loss = loss ? loss + sum(square(p)) : sum(square(p));
    backward(loss);
    optimizer->step();
    return std::vector{loss};
  };
}

// Causal, or with a window, keys that all see, and a score whose bias and slopes have gradients.
Step attention_step(DType dtype, std::int64_t t, bool holes) {
  const Tensor q = values({1, t, 4, 32}, dtype, 0), k = values({1, t, 2, 32}, dtype, 1), v = values({1, t, 2, 64}, dtype, 2),
               g = values({1, t, 4, 64}, dtype, 3), bias = values({4, t}, DType::f32, 4), slopes = values({4}, DType::f32, 5);
  return [=] {
    if (!holes) return both_ways(attention(q, k, v, {.causal = true}), g, {q, k, v});
    const Tensor o = attention(
        q, k, v,
        {.score = [&](Expr s, Index, Index h, Index i, Index j) { return s + bias(h, i - j) + slopes(h) * to_real(j); },
         .mask = [](Index, Index, Index i, Index j) { return j <= i && (i - j < 40 || j < 5); }});
    return both_ways(o, g, {q, k, v, bias, slopes});
  };
}

// With a bias of the steps, a skip and a gate, so long that time has several segments.
Step ssd_step(std::int64_t t, std::int64_t h, std::int64_t p, std::int64_t n) {
  const Tensor x = values({1, t, h, p}, DType::bf16, 0), dt = values({1, t, h}, DType::bf16, 1),
               B = values({1, t, 1, n}, DType::bf16, 2), C = values({1, t, 1, n}, DType::bf16, 3),
               z = values({1, t, h, p}, DType::bf16, 4), g = values({1, t, h, p}, DType::bf16, 5),
               A = values({h}, DType::f32, 6), D = values({h}, DType::f32, 7), bias = values({h}, DType::f32, 8);
  return [=] {
    return both_ways(ssd(x, dt, A - 1.5, B, C, {.D = D, .dt = softplus_bias(bias), .out = gate(z)}), g,
                     {x, dt, A, B, C, D, bias, z});
  };
}

// Without the hash of its text.
std::string base_name(const std::string& kernel) {
  const auto hash = kernel.rfind("__");
  return hash == std::string::npos ? kernel : kernel.substr(0, hash);
}

class SlowBudget : public testing::Test {
 protected:
  void SetUp() override {
    if (nvrtc_version() == 0) GTEST_SKIP() << "there is no NVRTC";
    use_device("emu");
  }
  // A case, and the counters of its kernels.
  void count(const std::string& name, const Step& step) {
    reset_emulated_counters();
    run(step);
    std::map<std::string, EmulatedCounters> kernels;
    for (const auto& [kernel, counters] : emulated_counters()) kernels[base_name(kernel)].add(counters);
    for (const auto& [kernel, counters] : kernels)
      for (const auto& [counter, value] : counters.named())
        if (value) now_[fmt::format("{}: {}", name, kernel)][counter] = value;
    cases_.insert(name);
  }
  // Holds the cases of the test to the file.
  void TearDown() override {
    use_device(name_of(before_));
    if (IsSkipped() || HasFatalFailure()) return;
    nlohmann::json file = nlohmann::json::parse(std::ifstream(kFile), nullptr, false);
    ASSERT_TRUE(file.is_object()) << kFile;
    Budget budget = file.at("kernels").get<Budget>();
    const auto other = [&](const auto& entry) { return !cases_.contains(entry.first.substr(0, entry.first.find(": "))); };
    if (const char* update = std::getenv("WEFT_UPDATE_BUDGET"); update && std::string_view(update) == "1") {
      std::erase_if(budget, std::not_fn(other));
      budget.insert(now_.begin(), now_.end());
      std::ofstream(kFile)
          << nlohmann::json{{"nvrtc", nvrtc_version()}, {"target", emulated_target()}, {"kernels", budget}}.dump(1) << "\n";
      return;
    }
    std::erase_if(budget, other);
    const Difference d = difference(budget, now_);
    if (file.at("nvrtc") != nvrtc_version() || file.at("target") != emulated_target()) {
      fmt::print("the budget is of NVRTC {} for sm_{}, this is {} for sm_{}; more than in the budget:\n{}less:\n{}",
                 file.at("nvrtc").get<int>(), file.at("target").get<int>(), nvrtc_version(), emulated_target(), d.grown,
                 d.shrunk);
      return;
    }
    EXPECT_EQ(d.grown, "") << "kernels do more than tests/budget.json allows; if this is meant: WEFT_UPDATE_BUDGET=1";
    if (!d.shrunk.empty())
      fmt::print("kernels do less than tests/budget.json allows; WEFT_UPDATE_BUDGET=1 keeps it so:\n{}", d.shrunk);
  }

 private:
  Device before_ = device();
  Budget now_;
  std::set<std::string> cases_;
};

constexpr std::pair<const char*, DType> kTypes[] = {{"f32", DType::f32}, {"bf16", DType::bf16}};

TEST_F(SlowBudget, Scan) {
  for (const auto& [type, dtype] : kTypes) count(fmt::format("scan, {}", type), scan_step(dtype, 2, 64, 64, 16));
  count("scan in segments, bf16", scan_step(DType::bf16, 1, 512, 3, 16));
  count("scan of 16 states in segments, bf16", scan_step(DType::bf16, 1, 288, 64, 16));
  count("scan of 256 states, f32", scan_step(DType::f32, 1, 40, 8, 256));
}
TEST_F(SlowBudget, Conv1d) {
  for (const auto& [type, dtype] : kTypes) count(fmt::format("conv1d, {}", type), conv1d_step(dtype, 64, 4));
  count("conv1d in documents, bf16", conv1d_packed_step(DType::bf16));
  count("conv1d, input alone", conv1d_input_step(false));
  count("conv1d, last inputs alone", conv1d_input_step(true));
  count("wide conv1d, f32", conv1d_step(DType::f32, 100, 150));
}
TEST_F(SlowBudget, Norm) {
  for (const auto& [type, dtype] : kTypes) {
    count(fmt::format("rms_norm, {}", type), norm_step(dtype, false));
    count(fmt::format("layer_norm, {}", type), norm_step(dtype, true));
  }
  count("gated norm, bf16", gated_norm_step(DType::bf16));
}
TEST_F(SlowBudget, CrossEntropy) {
  for (const auto& [type, dtype] : kTypes) count(fmt::format("cross_entropy, {}", type), cross_entropy_step(dtype, 0));
  count("smoothed cross_entropy, f32", cross_entropy_step(DType::f32, 0.1));
}
TEST_F(SlowBudget, AdamW) { count("adamw, f32", adamw_step()); }
TEST_F(SlowBudget, Embedding) { count("embedding, f32", embedding_step()); }
TEST_F(SlowBudget, Softmax) {
  for (const auto& [type, dtype] : kTypes) count(fmt::format("softmax, {}", type), softmax_step(dtype));
}
TEST_F(SlowBudget, Reduce) {
  for (const auto& [type, dtype] : kTypes) count(fmt::format("reduce, {}", type), reduce_step(dtype));
}
TEST_F(SlowBudget, Attention) {
  for (const auto& [type, dtype] : kTypes) count(fmt::format("attention, {}", type), attention_step(dtype, 150, false));
  count("attention in two launches, bf16", attention_step(DType::bf16, 400, false));
  count("attention with holes, bf16", attention_step(DType::bf16, 400, true));
}
TEST_F(SlowBudget, Ssd) {
  count("ssd, bf16", ssd_step(200, 4, 32, 32));
  count("ssd of 64 features and 128 states, bf16", ssd_step(130, 2, 64, 128));
}
TEST_F(SlowBudget, Random) { count("random numbers, f32", random_step()); }

}  // namespace
}  // namespace weft
