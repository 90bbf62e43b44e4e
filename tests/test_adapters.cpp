// Adapters: that they act wherever a layer is used, in every family, what they cost, their files, training them. The suite S000
// has the checks that the notes on LoRA of Mamba name.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "jit/json.h"
#include "nn/undrawn.h"
#include "tests/expect_error.h"
#include "tests/program.h"
#include "tests/temp_folder.h"
#include "tests/words_text.h"
#include "tools/evaluate/verify.h"
#include "tools/train/adapt.h"
#include "tools/weft.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Numbers = std::vector<double>;

const fs::path kGoldenFolders = fs::path(WEFT_SOURCE_DIR) / "tests" / "golden";

DType exact() { return device() == Device::cpu ? DType::f64 : DType::f32; }
double rounding() { return device() == Device::cpu ? 1e-10 : 2e-5; }

Numbers wave(std::int64_t n, double size, double phase) {
  Numbers v;
  for (std::int64_t i = 0; i < n; ++i) v.push_back(size * std::sin(1.7 * double(i) + phase));
  return v;
}

// Adapters that do something: of LoRA neither matrix is zero, IA3 scales by 0.5 to 1.5.
void randomise(const Module& model) {
  double phase = 0.3;
  for (const Adapter& a : model.parts<Adapter>())
    for (const NamedParam& p : a.named_parameters()) {
      Numbers v = wave(p.param.shape().numel(), 0.5, phase += 0.7);
      if (!a.is_lora())
        for (double& x : v) x += 1;
      Param(p.param).set(v);
    }
}

double distance(const Numbers& a, const Numbers& b) {
  EXPECT_EQ(a.size(), b.size());
  double d = 0, largest = 1e-3;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    d = std::max(d, std::abs(a[i] - b[i])), largest = std::max(largest, std::abs(b[i]));
  return d / largest;
}

constexpr std::int64_t kVocab = 40, kTokens = 9;

Tensor text_ids(std::int64_t from = 0, std::int64_t to = kTokens) {
  std::vector<std::int64_t> ids;
  for (std::int64_t i = from; i < to; ++i) ids.push_back((i * 17 + i * i * 5 + 3) % kVocab);
  return Tensor::from(ids, {1, to - from});
}

Numbers evaluated(LanguageModel& model) {
  return run([&] { return no_grad([&] { return model(text_ids()); }); }).to_host<double>();
}

// As training computes them: with gradients.
Numbers trained(LanguageModel& model) {
  const Tensor logits = run([&] {
    Tensor y = model(text_ids());
    backward(sum(square(y)));
    return y;
  });
  for (Param& p : model.parameters()) p.zero_grad();
  return logits.to_host<double>();
}

// After each of the tokens from the third on: a prompt of three, then steps.
Numbers stepped(LanguageModel& model) {
  const auto cache = model.make_cache(1);
  Numbers all = run([&] { return model.prefill(text_ids(0, 3), *cache); }).to_host<double>();
  for (std::int64_t i = 3; i < kTokens; ++i)
    for (const double v : run([&] { return model.step(text_ids(i, i + 1), *cache); }).to_host<double>()) all.push_back(v);
  return all;
}

struct Family {
  std::string name;
  std::unique_ptr<LanguageModel> model;
};

// Small models of every family; where it can be chosen their heads are layers of their own.
std::vector<Family> families() {
  std::vector<Family> all;
  for (const ModelFamily& family : model_families()) {
    ModelOptions sizes;
    for (const ModelOption& option : family.options) {
      const std::string name = option.name;
      if (name == "width") sizes[name] = std::int64_t(16);
      if (name == "layers") sizes[name] = std::int64_t(2);
      if (name == "layer_kinds") sizes[name] = std::string("GL");
      if (name == "heads") sizes[name] = std::int64_t(2);
      if (name == "kv_heads") sizes[name] = std::int64_t(1);
      if (name == "state" || name == "head_size") sizes[name] = std::int64_t(8);
      if (name == "window" || name == "meta_tokens") sizes[name] = std::int64_t(4);
      if (name == "tie") sizes[name] = false;
    }
    seed(11);
    all.push_back({family.name, family.from_options(sizes, {.size = kVocab}, {.dtype = exact()})});
    all.back().model->initialise();
    // So that attention and the head do not see almost nothing.
    for (const NamedParam& p : all.back().model->named_parameters())
      if (p.param.shape().rank() == 2 && !p.name.ends_with("A_log"))
        Param(p.param).set(wave(p.param.shape().numel(), 0.4, double(p.name.size())));
  }
  seed(0);
  return all;
}

// The names of a model's kinds of layers.
std::set<std::string> kinds_of_layers(const Module& model) {
  std::set<std::string> kinds;
  for (const WeightedModule& l : model.parts<WeightedModule>()) {
    std::string path = l.path();
    if (path.ends_with(".0")) path.resize(path.size() - 2);
    kinds.insert(path.substr(path.rfind('.') + 1));
  }
  return kinds;
}

bool has_filters(const Module& model, const std::string& kind) {
  for (const WeightedModule& l : model.parts<WeightedModule>())
    if (l.path().ends_with(kind) && l.use() == WeightUse::filter) return true;
  return false;
}
bool has_table(const Module& model, const std::string& kind) {
  for (const WeightedModule& l : model.parts<WeightedModule>())
    if (l.path().ends_with(kind) && l.use() == WeightUse::table) return true;
  return false;
}

// One adapter after the other acts, all others are there and do not: each on one kind of layer.
void expect_acts_everywhere_alike(LanguageModel& model) {
  std::vector<std::string> names;
  for (const std::string& kind : kinds_of_layers(model)) {
    const auto add = [&](const AdapterOptions& options, bool on_input) {
      names.push_back(kind + (options.kind == AdapterKind::lora ? "-lora" : on_input ? "-ia3-in" : "-ia3"));
      add_adapter(model, options, {{.word = kind, .on_input = on_input}}, names.back());
    };
    if (!has_filters(model, kind)) add({.rank = 1, .alpha = 3}, false);
    add({.kind = AdapterKind::ia3}, false);
    if (!has_table(model, kind) && kind != "conv1d") add({.kind = AdapterKind::ia3}, true);
  }
  activate_adapters(model, {});
  const Numbers plain = evaluated(model);
  activate_adapters(model, names);
  EXPECT_LT(distance(evaluated(model), plain), rounding()) << "new adapters change nothing";
  randomise(model);
  for (const Adapter& a : model.parts<Adapter>())  // all of them, not the last one alone
    for (Param& p : a.parameters()) p.set_trainable(true);
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    activate_adapters(model, {name});
    const Numbers in_training = trained(model);
    EXPECT_GT(distance(in_training, plain), 1e-4) << "it does nothing";
    {
      const Evaluating scope(model);
      EXPECT_LT(distance(evaluated(model), in_training), rounding());
      const Numbers by_steps = stepped(model), tail(in_training.begin() + 2 * kVocab, in_training.end());
      EXPECT_LT(distance(by_steps, tail), 10 * rounding());
      merge_adapters(model);
      EXPECT_LT(distance(evaluated(model), in_training), std::min(1e-6, 1e3 * rounding())) << "merged";
      EXPECT_LT(distance(stepped(model), tail), 10 * rounding()) << "merged";
      unmerge_adapters(model);
      activate_adapters(model, {});
      EXPECT_EQ(evaluated(model), plain) << "unmerged, to the bit";
    }
  }
}

TEST(Adapters, EveryTargetAloneActsInEveryFamilyWhereverItIsUsed) {
  for (Family& f : families()) {
    // Elsewhere kernels are compiled, and plans recorded, for each of them.
    if (device() != Device::cpu && f.name != "mamba") continue;
    SCOPED_TRACE(f.name);
    expect_acts_everywhere_alike(*f.model);
  }
}

// ---- the layers -------------------------------------------------------------------------------------------------------------

TEST(Adapters, GradientsAreThoseOfDifferences) {
  if (device() != Device::cpu) GTEST_SKIP() << "fp64";
  seed(3);
  Mamba model({.vocab = 12, .width = 8, .layers = 1, .state = 4, .dtype = DType::f64});
  model.initialise();
  add_adapter(model, {.rank = 1, .alpha = 2}, parse_targets("all,embedding", AdapterKind::lora), "low");
  add_adapter(model, {.kind = AdapterKind::ia3}, parse_targets("all,embedding,out_proj:in", AdapterKind::ia3), "scales");
  randomise(model);
  for (const Adapter& a : model.parts<Adapter>())
    for (Param& p : a.parameters()) p.set_trainable(true);
  const Tensor ids = Tensor::from<std::int64_t>({3, 1, 7, 2, 11, 5}, {2, 3});
  const auto loss = [&] { return run([&] { return no_grad([&] { return cross_entropy(model(ids), ids); }); }).item(); };
  run([&] { backward(cross_entropy(model(ids), ids)); });
  std::size_t checked = 0;
  for (const Adapter& a : model.parts<Adapter>())
    for (Param& p : a.parameters()) {
      const Numbers gradient = p.gradient<double>(), values = p.to_host<double>();
      for (const std::size_t i : {std::size_t(0), values.size() / 2}) {
        const auto at = [&](double step) {
          Numbers moved = values;
          moved[i] += step;
          p.set(moved);
          return loss();
        };
        const double difference = (at(1e-5) - at(-1e-5)) / 2e-5;
        p.set(values);
        EXPECT_NEAR(gradient[i], difference, 1e-7 + 1e-5 * std::abs(difference)) << a.path() << " " << p.name() << " " << i;
        ++checked;
      }
    }
  EXPECT_GE(checked, 26u);
  for (const NamedParam& p : model.named_parameters())
    EXPECT_TRUE(p.name.find(".adapter.") != std::string::npos || !p.param.has_gradient()) << p.name;
}

TEST(Adapters, SeveralSideBySideAddUp) {
  seed(3);
  Linear layer(6, 5, {.dtype = exact()});
  const Tensor x = cast(Tensor::from(wave(12, 1, 0), {2, 6}), exact());
  const auto y = [&] { return run([&] { return no_grad([&] { return layer(x); }); }).to_host<double>(); };
  const Numbers plain = y();
  Adapter a = layer.adapt("a", {.rank = 2, .alpha = 4}), b = layer.adapt("b", {.rank = 3, .alpha = 1, .rank_stabilised = true}),
          c = layer.adapt("c", {.kind = AdapterKind::ia3});
  EXPECT_DOUBLE_EQ(a.scale(), 2);
  EXPECT_DOUBLE_EQ(b.scale(), 1 / std::sqrt(3.0));
  EXPECT_TRUE(a.is_identity() && b.is_identity() && c.is_identity());
  randomise(layer);
  EXPECT_FALSE(a.is_identity() || b.is_identity() || c.is_identity());
  const auto only = [&](bool with_a, bool with_b, bool with_c) {
    a.activate(with_a), b.activate(with_b), c.activate(with_c);
    return y();
  };
  const Numbers first = only(true, false, false), second = only(false, true, false), both = only(true, true, false);
  Numbers sums;
  for (std::size_t i = 0; i < both.size(); ++i) sums.push_back(first[i] + second[i] - plain[i]);
  EXPECT_LT(distance(both, sums), rounding());
  const Numbers scaled = only(true, true, true), l = c.parameters()[0].to_host<double>();
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] *= l[i % 5];
  EXPECT_LT(distance(scaled, sums), rounding()) << "what IA3 scales has the others in it";
  EXPECT_EQ(only(false, false, false), plain);
  EXPECT_EQ(layer.parts<Adapter>().size(), 3u);
  EXPECT_EQ(layer.state_dict().size(), 2u) << "the weight and the bias";
  EXPECT_EQ(layer.named_parameters().size(), 2u + 2 + 2 + 1);
}

// What is masked is the weight with its adapters in it, so that masked places stay zero.
TEST(Adapters, OfAMaskedLayerAreMaskedToo) {
  seed(3);
  Linear layer(6, 5, {.bias = false, .dtype = exact()});
  const Adapter a = layer.adapt("a", {.rank = 2, .alpha = 4});
  randomise(layer);
  const Tensor x = cast(Tensor::from(wave(12, 1, 0), {2, 6}), exact());
  layer.merge();
  const Numbers whole = layer.weight().to_host<double>();
  layer.unmerge();
  layer.mask({});
  const Numbers logits = wave(30, 1, 2);
  Param(layer.mask()->logits()).set(logits);
  layer.train(false);
  const Numbers y = run([&] { return layer(x); }).to_host<double>();
  const Numbers in = x.to_host<double>();
  for (std::size_t r = 0; r < 2; ++r)
    for (std::size_t o = 0; o < 5; ++o) {
      double sum = 0;
      for (std::size_t i = 0; i < 6; ++i) sum += logits[o * 6 + i] > 0 ? whole[o * 6 + i] * in[r * 6 + i] : 0;
      EXPECT_NEAR(y[r * 5 + o], sum, 1e-5);
    }
}

TEST(Adapters, DropoutIsThereInTrainingAlone) {
  seed(3);
  Linear layer(200, 3, {.bias = false});
  const Adapter a = layer.adapt("a", {.rank = 2, .alpha = 2, .dropout = 0.5});
  randomise(layer);
  const Tensor x = ones({1, 200});
  const auto y = [&] { return run([&] { return layer(x); }).to_host<float>(); };
  layer.train(false);
  const auto still = y();
  EXPECT_EQ(y(), still);
  layer.train();
  EXPECT_NE(y(), still);
  EXPECT_NE(y(), y());
}

TEST(Adapters, MistakesAtALayer) {
  Linear layer(6, 5);
  Conv1d conv(6, 4);
  Embedding table(9, 4);
  const std::string here = "test_adapters.cpp";
  expect_error(ErrorKind::usage, {"rank of LoRA must be at least 1", "rank 0", here}, [&] { layer.adapt("a", {.rank = 0}); });
  expect_error(ErrorKind::usage, {"dropout must lie in [0, 1)", "dropout 1", here}, [&] { layer.adapt("a", {.dropout = 1}); });
  expect_error(ErrorKind::usage, {"alpha must be a finite number", here}, [&] { layer.adapt("a", {.alpha = INFINITY}); });
  expect_error(ErrorKind::usage, {"does not act on a depthwise convolution", "IA3", here}, [&] { conv.adapt("a", {}); });
  expect_error(ErrorKind::usage, {"inputs of an embedding", here},
               [&] { table.adapt("a", {.kind = AdapterKind::ia3, .on_input = true}); });
  layer.adapt("a", {.rank = 2});
  expect_error(ErrorKind::usage, {"registered twice", "adapter.a", here}, [&] { layer.adapt("a", {.rank = 2}); });
  expect_error(ErrorKind::usage, {"are not merged"}, [&] { layer.unmerge(); });
  layer.merge();
  expect_error(ErrorKind::usage, {"merged already"}, [&] { layer.merge(); });
  expect_error(ErrorKind::usage, {"merged into its weight", "unmerge"}, [&] { layer.adapt("b", {.rank = 2}); });
}

// ---- which layers -----------------------------------------------------------------------------------------------------------

TransformerConfig tiny_transformer() { return {.vocab = 40, .width = 16, .layers = 2, .heads = 2, .kv_heads = 1}; }

std::vector<std::string> adapted_layers(const std::string& targets, AdapterKind kind, Module& model) {
  add_adapter(model, {.kind = kind, .rank = 1}, parse_targets(targets, kind));
  std::vector<std::string> rows;
  for (const AdapterCounts& c : count_adapters(model)) rows.push_back(fmt::format("{} {}", c.layer, c.modules));
  return rows;
}

TEST(AdapterTargets, AreNamesAndGroups) {
  using Rows = std::vector<std::string>;
  const auto mamba = [](const std::string& targets, AdapterKind kind = AdapterKind::lora) {
    Mamba model({.vocab = 40, .width = 16, .layers = 2, .state = 4});
    return adapted_layers(targets, kind, model);
  };
  EXPECT_EQ(mamba("ssm"), (Rows{"in_proj 2", "x_proj 2", "dt_proj 2", "out_proj 2"}));
  EXPECT_EQ(mamba("ssm", AdapterKind::ia3), (Rows{"in_proj 2", "conv1d 2", "x_proj 2", "dt_proj 2", "out_proj 2"}));
  EXPECT_EQ(mamba("mixer.in_proj, layers.1.mixer.x_proj"), (Rows{"in_proj 2", "x_proj 1"}));
  EXPECT_EQ(mamba("embedding"), (Rows{"embeddings 1"}));
  EXPECT_EQ(mamba("all"), mamba("ssm"));
  const auto transformer = [](const std::string& targets) {
    TransformerConfig c = tiny_transformer();
    c.tie = false;
    Transformer model(c);
    EXPECT_EQ(usual_targets(model), "attention");
    return adapted_layers(targets, AdapterKind::lora, model);
  };
  EXPECT_EQ(transformer("attention,mlp,head"),
            (Rows{"q_proj 2", "k_proj 2", "v_proj 2", "o_proj 2", "gate_proj 2", "up_proj 2", "down_proj 2", "lm_head 1"}));
  // A number at the end may be left out.
  Hymba hymba({.vocab = 40, .width = 16, .layers = 2, .heads = 2, .kv_heads = 1, .meta_tokens = 2, .window = 4, .state = 4});
  EXPECT_EQ(usual_targets(hymba), "ssm");
  EXPECT_EQ(adapted_layers("x_proj,dt_proj", AdapterKind::lora, hymba), (Rows{"x_proj.0 2", "dt_proj.0 2"}));
}

TEST(AdapterTargets, HaveRanksOfTheirOwnAndTheLastOneCounts) {
  Mamba model({.vocab = 40, .width = 32, .layers = 2, .state = 4});
  add_adapter(model, {.rank = 8, .alpha = 16}, parse_targets("ssm,dt_proj:2,x_proj:4:3", AdapterKind::lora));
  EXPECT_EQ(to_text(count_adapters(model)),
            "LoRA, rank 8, alpha 16: in_proj 2, out_proj 2 layers; LoRA, rank 4, alpha 3: x_proj 2 layers; LoRA, rank 2, alpha "
            "16: dt_proj 2 layers");
}

TEST(AdapterTargets, MistakesAreNamed) {
  Mamba model({.vocab = 40, .width = 16, .layers = 2, .state = 4});
  const auto add = [&](const std::string& targets, AdapterOptions options = {.rank = 1}) {
    add_adapter(model, options, parse_targets(targets, options.kind));
  };
  expect_error(ErrorKind::usage, {"no layer is called 'in_porj'; did you mean 'in_proj'?", "the model has", "x_proj", "ssm"},
               [&] { add("in_porj"); });
  expect_error(ErrorKind::usage, {"no layer is called 'smm'; did you mean 'ssm'?"}, [&] { add("smm"); });
  expect_error(ErrorKind::usage, {"no layer is called 'attention'"}, [&] { add("attention"); });
  expect_error(ErrorKind::usage, {"no layer is called 'head'", "take embedding"}, [&] { add("head"); });
  expect_error(ErrorKind::usage, {"LoRA does not act on 'conv1d'", "take IA3"}, [&] { add("in_proj,conv1d"); });
  expect_error(
      ErrorKind::usage,
      {"a rank must lie between 1 and the smaller size", "rank 2 of backbone.layers.0.mixer.dt_proj (32, 1)", "dt_proj:4"},
      [&] { add("ssm", {.rank = 2}); });
  expect_error(ErrorKind::usage, {"a rank must lie", "rank 0 of backbone.layers.0.mixer.in_proj (64, 16)"},
               [&] { add("in_proj:0"); });
  for (const char* bad : {"", "in_proj,", "in_proj:x", "in_proj:1:2:3", "in_proj:8:nan", ":3"})
    expect_error(ErrorKind::usage, {"this names no target", "for instance"}, [&] { add(bad); });
  expect_error(ErrorKind::usage, {"'out_proj:out'", "out_proj:in"}, [&] { add("out_proj:out", {.kind = AdapterKind::ia3}); });
  expect_error(ErrorKind::usage, {"there is none called 'b'"}, [&] { activate_adapters(model, {"b"}); });
  EXPECT_TRUE(model.parts<Adapter>().empty()) << "nothing was added";
}

// ---- what they cost ---------------------------------------------------------------------------------------------------------

// The products of a training step by the shapes of their results, and the memory of its values.
struct StepCost {
  std::multiset<std::string> products;
  std::size_t bytes;
};
StepCost cost_of_a_step(LanguageModel& model, AdamW& optimizer) {
  StepCost cost;
  const Tensor ids = Tensor::from(std::vector<std::int64_t>(4 * 32, 3), {4, 32});
  run([&] {
    Tensor loss = cross_entropy(model(ids), ids);
    backward(loss);
    optimizer.step();
    const Tape& t = tape();
    for (NodeId id = 0; id < NodeId(t.nodes.size()); ++id)
      if (const std::string_view op = t.op(id).name; op == "linear" || op == "row_product" || op == "matmul")
        cost.products.insert(to_string(t.nodes[std::size_t(id)].shape()));
    return loss;
  });
  cost.bytes = last_run().arena_bytes;
  return cost;
}

TEST(Adapters, AFrozenWeightCostsNoGradientAndNoStateOfTheOptimizer) {
  const MambaConfig c{.vocab = 512, .width = 24, .layers = 2, .state = 4};
  Mamba whole(c), adapted(c);
  add_adapter(adapted, {.rank = 1}, parse_targets("ssm", AdapterKind::lora));
  AdamW all(whole.trainable_parameters()), few(adapted.trainable_parameters());
  const StepCost full = cost_of_a_step(whole, all), lora = cost_of_a_step(adapted, few);
  std::int64_t moments = 0;
  for (const auto& [name, tensor] : few.state_dict())
    if (name.starts_with("m.")) {
      moments += tensor.numel();
      EXPECT_NE(name.find(".lora_"), std::string::npos) << name;
    }
  EXPECT_EQ(moments, count_parameters(adapted).trainable);
  EXPECT_LT(moments, 2000);
  for (const WeightedModule& l : whole.parts<WeightedModule>()) {
    if (l.use() == WeightUse::filter) continue;
    const std::string shape = to_string(l.weight().shape());
    EXPECT_GT(full.products.count(shape), 0u) << shape;
    EXPECT_EQ(lora.products.count(shape), 0u) << "a gradient of " << l.path();
  }
  EXPECT_LT(lora.bytes, full.bytes);
}

// ---- S000 -------------------------------------------------------------------------------------------------------------------

std::string figures_of(std::int64_t layers, std::int64_t vocab, std::string* modules = nullptr) {
  const Undrawn shapes;
  Mamba model({.vocab = vocab, .width = 768, .layers = layers});
  add_adapter(model, {.rank = 8, .alpha = 16, .dropout = 0.05}, parse_targets("ssm", AdapterKind::lora));
  if (modules) *modules = to_text(count_adapters(model));
  return to_text(count_parameters(model));
}

TEST(S000, SsmOnlyLoraHasTheFiguresOfTheNotes) {
  std::string modules;
  EXPECT_EQ(figures_of(32, 50277, &modules), "trainable params: 2,392,064 || all params: 161,698,304 || trainable%: 1.4793");
  EXPECT_EQ(modules, "LoRA, rank 8, alpha 16, dropout 0.05: in_proj 32, x_proj 32, dt_proj 32, out_proj 32 layers");
  EXPECT_EQ(figures_of(24, 50280), "trainable params: 1,794,048 || all params: 130,929,408 || trainable%: 1.3702");
}

TEST(S000, Ia3OfOnesIsANoOpAndMergedIsUnmerged) {
  seed(5);
  Mamba model({.vocab = 40, .width = 16, .layers = 2, .state = 4, .dtype = exact()});
  const Numbers plain = evaluated(model);
  add_adapter(model, {.kind = AdapterKind::ia3}, parse_targets("ssm,embedding", AdapterKind::ia3));
  EXPECT_LT(distance(evaluated(model), plain), rounding());
  randomise(model);
  const Numbers unmerged = evaluated(model);
  EXPECT_GT(distance(unmerged, plain), 1e-3);
  merge_adapters(model);
  const Numbers merged = evaluated(model);
  EXPECT_LT(distance(merged, unmerged), device() == Device::cpu ? 1e-6 : 2e-5);
  seed(0);
}

// ---- files ------------------------------------------------------------------------------------------------------------------

TEST(AdapterFiles, GoldenValuesOfPeft) {
  for (const char* name : {"mamba_lora", "mamba_ia3"}) {
    const std::vector<VerifyRow> rows = verify_model(kGoldenFolders / name, DType::f32);
    std::set<std::string> checks;
    for (const VerifyRow& row : rows) {
      EXPECT_TRUE(row.passed()) << name << ": " << row.what << " " << row.error;
      checks.insert(row.what);
    }
    for (const char* check :
         {"logits with the adapter", "logits in evaluation", "logits by steps with a cache", "logits of the merged weights"})
      EXPECT_TRUE(checks.contains(check)) << name << ": " << check;
    EXPECT_EQ(rows.size(), name == std::string("mamba_ia3") ? 4u + 1 + 6 : 4u);
  }
}

json config_in(const fs::path& folder) { return read_json(folder / "adapter_config.json"); }

TEST(AdapterFiles, OfPeftAreWrittenAgainAsTheyWere) {
  for (const char* name : {"mamba_lora", "mamba_ia3"}) {
    const auto model = LanguageModel::load(kGoldenFolders / name);
    const TempFolder folder;
    save_adapter(*model, folder.path(), "somewhere");
    const fs::path theirs = kGoldenFolders / name / "adapter";
    const TensorMap before = read_safetensors(theirs / "adapter_model.safetensors"),
                    after = read_safetensors(folder / "adapter_model.safetensors");
    ASSERT_EQ(before.size(), after.size());
    for (const auto& [key, tensor] : before) {
      ASSERT_TRUE(after.contains(key)) << key;
      EXPECT_EQ(after.at(key).shape, tensor.shape) << key;
      EXPECT_EQ(after.at(key).bytes, tensor.bytes) << key;
    }
    const json a = config_in(theirs), b = config_in(folder.path());
    for (const char* key : {"peft_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "alpha_pattern",
                            "rank_pattern", "fan_in_fan_out"})
      EXPECT_TRUE(!a.contains(key) || a[key] == b.value(key, json())) << name << " " << key;
    for (const char* key : {"target_modules", "feedforward_modules"})
      EXPECT_TRUE(!a.contains(key) || a[key].get<std::set<std::string>>() == b[key].get<std::set<std::string>>()) << key;
    EXPECT_EQ(b["base_model_name_or_path"], "somewhere");
  }
}

TEST(AdapterFiles, EveryFamilysAdaptersComeBack) {
  for (const AdapterKind kind : {AdapterKind::lora, AdapterKind::ia3}) {
    std::vector<Family> from = families(), to = families();
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (device() == Device::emu && from[i].name != "mamba") continue;
      SCOPED_TRACE(from[i].name);
      Module& model = *from[i].model;
      add_adapter(model, {.kind = kind, .rank = 1, .alpha = 5, .dropout = kind == AdapterKind::lora ? 0.1 : 0},
                  parse_targets("all,embedding", kind));
      randomise(model);
      const TempFolder folder;
      save_adapter(model, folder.path());
      load_adapter(*to[i].model, folder.path());
      EXPECT_EQ(to_text(count_adapters(*to[i].model)), to_text(count_adapters(model)));
      const Evaluating one(*from[i].model), other(*to[i].model);
      EXPECT_LT(distance(evaluated(*to[i].model), evaluated(*from[i].model)), rounding());
    }
  }
}

TEST(AdapterFiles, RanksAndAlphasOfTargetsAreWritten) {
  const MambaConfig c{.vocab = 40, .width = 32, .layers = 3, .state = 4};
  Mamba model(c), other(c);
  add_adapter(model, {.rank = 4, .alpha = 8}, parse_targets("ssm,dt_proj:2,layers.1.mixer.x_proj:3:6", AdapterKind::lora));
  randomise(model);
  const TempFolder folder;
  save_adapter(model, folder.path());
  const json config = config_in(folder.path());
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["rank_pattern"], (json{{"dt_proj", 2}, {"backbone.layers.1.mixer.x_proj", 3}}));
  EXPECT_EQ(config["alpha_pattern"], (json{{"backbone.layers.1.mixer.x_proj", 6.0}}));
  load_adapter(other, folder.path());
  EXPECT_EQ(to_text(count_adapters(other)), to_text(count_adapters(model)));
  // Only some of a kind of layer: their whole names.
  Mamba some(c);
  add_adapter(some, {.rank = 4}, parse_targets("layers.0.mixer.in_proj,out_proj", AdapterKind::lora));
  save_adapter(some, folder.path());
  EXPECT_EQ(config_in(folder.path())["target_modules"], (json{"backbone.layers.0.mixer.in_proj", "out_proj"}));
}

TEST(AdapterFiles, ThatDoNotFitAreRefusedWithAllThatIsWrong) {
  const TempFolder folder;
  Mamba model({.vocab = 40, .width = 16, .layers = 3, .state = 4}), other({.vocab = 40, .width = 24, .layers = 2, .state = 4});
  add_adapter(model, {.rank = 1}, parse_targets("in_proj,x_proj", AdapterKind::lora));
  save_adapter(model, folder.path(), "the-other-one");
  const auto load = [&] { load_adapter(other, folder.path()); };
  expect_error(
      ErrorKind::io,
      {"adapter: it does not fit the model", "adapter_model.safetensors: 12 problems",
       "shape of base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight: the file has (1, 16), the model (1, 24)",
       "layers.0.mixer.in_proj.lora_B.weight: the file has (64, 1), the model (96, 1)",
       "unexpected: base_model.model.backbone.layers.2.mixer.in_proj.lora_A.weight (1, 16), no such layer",
       "made for \"the-other-one\""},
      load);
  EXPECT_TRUE(other.parts<Adapter>().empty());
  EXPECT_EQ(other.trainable_parameters().size(), other.parameters().size()) << "nothing was changed";

  const auto rewrite = [&](const json& changes, const std::function<void(TensorMap&)>& change = {}) {
    add_adapter(other, {.rank = 1}, parse_targets("in_proj", AdapterKind::lora),
                fmt::format("n{}", other.parts<Adapter>().size()));
    save_adapter(other, folder.path(), "", fmt::format("n{}", other.parts<Adapter>().size() - 2));
    json config = config_in(folder.path());
    if (changes.is_object()) config.update(changes);
    std::ofstream(folder / "adapter_config.json") << config.dump();
    TensorMap tensors = read_safetensors(folder / "adapter_model.safetensors");
    if (change) change(tensors);
    write_safetensors(folder / "adapter_model.safetensors", tensors);
  };
  const std::string a = "base_model.model.backbone.layers.0.mixer.in_proj.lora_A.weight";
  rewrite({}, [&](TensorMap& t) { t.erase(a); });
  expect_error(ErrorKind::io, {"1 problems", "missing: " + a + " (1, 24)"}, load);
  rewrite({}, [&](TensorMap& t) { t["base_model.model.lm_head.weight"] = t.at(a); });
  expect_error(ErrorKind::io, {"unexpected: base_model.model.lm_head.weight"}, load);
  rewrite({{"target_modules", {"in_proj", "x_proj"}}});
  expect_error(ErrorKind::io, {"2 problems", "missing: the tensors of backbone.layers.0.mixer.x_proj, a target"}, load);
  rewrite({{"target_modules", {"in_proj", "q_proj"}}});
  expect_error(ErrorKind::io, {"target_modules: the model has no 'q_proj'"}, load);
  rewrite({{"use_dora", true}, {"bias", "all"}, {"init_lora_weights", "pissa"}});
  expect_error(ErrorKind::io, {"a form of adapter that weft does not have", "use_dora = true", "bias = \"all\"", "pissa"},
               load);
  rewrite({{"peft_type", "LOHA"}});
  expect_error(ErrorKind::io, {"another kind of adapter", "\"LOHA\"", "LORA"}, load);
  rewrite({{"lora_alpha", "much"}});
  expect_error(ErrorKind::io, {"adapter_config.json", "lora_alpha = \"much\""}, load);
  rewrite({});
  fs::resize_file(folder / "adapter_model.safetensors", fs::file_size(folder / "adapter_model.safetensors") - 8);
  expect_error(ErrorKind::io, {"adapter_model.safetensors"}, load);
  fs::remove(folder / "adapter_model.safetensors");
  std::ofstream(folder / "adapter_model.bin") << "PK";
  expect_error(ErrorKind::io, {"adapter_model.safetensors: missing", "adapter_model.bin, a pickle", "safe_serialization"},
               load);
  expect_error(ErrorKind::io, {"nowhere"}, [&] { load_adapter(other, folder / "nowhere"); });
}

TEST(AdapterFiles, AModelIsSavedWithItsAdapterUnlessThatIsMerged) {
  const TempFolder folder;
  seed(5);
  Mamba model({.vocab = 40, .width = 16, .layers = 2, .state = 4});
  add_adapter(model, {.rank = 1}, parse_targets("ssm", AdapterKind::lora));
  randomise(model);
  const Numbers adapted = evaluated(model);
  model.save(folder / "beside");
  EXPECT_LT(distance(evaluated(*LanguageModel::load(folder / "beside")), adapted), 1e-6);
  merge_adapters(model);
  model.save(folder / "merged");
  EXPECT_FALSE(fs::exists(folder / "merged" / "adapter"));
  const auto merged = LanguageModel::load(folder / "merged");
  EXPECT_TRUE(merged->parts<Adapter>().empty());
  EXPECT_LT(distance(evaluated(*merged), adapted), 1e-5);
  unmerge_adapters(model);
  EXPECT_EQ(evaluated(model), adapted);
  seed(0);
}

// ---- training ---------------------------------------------------------------------------------------------------------------

std::shared_ptr<TokenStream> data_for(const TrainOptions& o) {
  return std::make_shared<TokenStream>(Corpus{"words", words_text(20000)}, Tokenizer::bytes(),
                                       BatchOptions{.batch = o.batch, .length = o.length, .seed = o.seed});
}

// A model that has seen a little, and options to train adapters of it.
struct AdapterTraining : testing::Test {
  void SetUp() override {
    TrainOptions o;
    o.steps = 5, o.batch = 2, o.length = 16, o.warmup = 2;
    o.model_options = {{"width", 32}, {"layers", 2}, {"state", 4}};
    Trainer base(data_for(o), o);
    for (int i = 0; i < 5; ++i) base.step();
    base.save(folder / "base");
  }
  TrainOptions options(const std::string& kind = "lora", const std::string& targets = "ssm") const {
    TrainOptions o;
    o.steps = 20, o.batch = 2, o.length = 16, o.warmup = 2, o.lr = 1e-2, o.seed = 4;
    o.from = (folder / "base").string(), o.adapter = kind, o.targets = targets;
    o.rank = 2, o.alpha = 8;
    return o;
  }
  const TempFolder folder;
};

TEST_F(AdapterTraining, LearnsAndLeavesTheWeightsAsTheyAre) {
  const auto base = LanguageModel::load(folder / "base");
  for (const char* kind : {"lora", "ia3"}) {
    const TrainOptions o = options(kind, "");
    Trainer trainer(data_for(o), o);
    const double before = trainer.validate().loss();
    for (int i = 0; i < 20; ++i) trainer.step();
    EXPECT_LT(trainer.validate().loss(), before - 0.01) << kind;
    const TensorMap now = trainer.model().state_dict();
    for (const auto& [name, tensor] : base->state_dict()) EXPECT_EQ(now.at(name).bytes, tensor.bytes) << name;
  }
}

TEST_F(AdapterTraining, ResumedGoesOnBitByBit) {
  TrainOptions o = options();
  o.adapter_dropout = 0.2;
  Trainer whole(data_for(o), o), first(data_for(o), o);
  std::vector<double> losses, rest;
  for (int i = 0; i < 12; ++i) losses.push_back(whole.step().loss);
  for (int i = 0; i < 6; ++i) first.step();
  first.save(folder / "half");
  Trainer second = Trainer::resume(folder / "half", data_for(o));
  for (int i = 6; i < 12; ++i) rest.push_back(second.step().loss);
  EXPECT_EQ(rest, std::vector<double>(losses.begin() + 6, losses.end()));
  const std::vector<NamedParam> a = whole.model().named_parameters(), b = second.model().named_parameters();
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].name, b[i].name);
    EXPECT_EQ(a[i].param.bytes(), b[i].param.bytes()) << a[i].name;
  }
  // The folder is a model with its adapter, and sums cover both.
  EXPECT_EQ(LanguageModel::load(folder / "half")->parts<Adapter>().size(), 8u);
  const SavedState state = read_state(folder / "half");
  EXPECT_TRUE(state.files.contains("adapter/adapter_model.safetensors"));
  fs::resize_file(folder / "half" / "adapter" / "adapter_model.safetensors", 100);
  expect_error(ErrorKind::io, {"damaged", "adapter/adapter_model.safetensors", "100 bytes"},
               [&] { check_files(folder / "half", state); });
}

TEST_F(AdapterTraining, GoesOnWithTheAdapterThatAFolderHas) {
  Trainer first(data_for(options()), options());
  for (int i = 0; i < 3; ++i) first.step();
  first.save(folder / "adapted");
  TrainOptions o = options();
  o.from = (folder / "adapted").string();
  expect_error(ErrorKind::usage, {"has an adapter already", "in_proj 2", "leave out --adapter"},
               [&] { Trainer(data_for(o), o); });
  o.adapter = "";
  Trainer second(data_for(o), o);
  EXPECT_EQ(second.model().trainable_parameters().size(), 16u);
  second.step();
  EXPECT_NE(second.model().parts<Adapter>()[0].parameters()[1].bytes(),
            first.model().parts<Adapter>()[0].parameters()[1].bytes());
}

// Of a model whose second layer is not part of its result.
TEST_F(AdapterTraining, AnAdapterThatHasNoGradientIsAnError) {
  const auto model = LanguageModel::load(folder / "base");
  add_adapter(*model, {.rank = 1}, parse_targets("in_proj", AdapterKind::lora));
  expect_error(ErrorKind::training,
               {"no gradient in the first step", "backbone.layers.0.mixer.in_proj.adapter.default",
                "backbone.layers.1.mixer.in_proj.adapter.default", "--targets"},
               [&] { check_adapters_learn(*model); });
  // Trained: keys and values that a layer has and does not use.
  TrainOptions o = options("", "");
  o.from.clear();
  o.model = "hymba-study";
  o.model_options = {{"width", 16},      {"layer_kinds", std::string("GLLG")},
                     {"heads", 2},       {"kv_heads", 1},
                     {"meta_tokens", 2}, {"window", 4},
                     {"state", 4},       {"keep_consumer_kv", true}};
  Trainer(data_for(o), o).save(folder / "study");
  o = options("lora", "k_proj");
  o.from = (folder / "study").string();
  Trainer trainer(data_for(o), o);
  expect_error(ErrorKind::training, {"no gradient in the first step", "model.layers.2.attn.k_proj"}, [&] { trainer.step(); });
}

TEST_F(AdapterTraining, MistakesInOptions) {
  TrainOptions o = options();
  o.from = "";
  expect_error(ErrorKind::usage, {"an adapter needs a trained model", "--from"}, [&] { o.check(); });
  o = options(), o.adapter_dropout = 1;
  expect_error(ErrorKind::usage, {"dropout", "[0, 1)"}, [&] { o.check(); });
  o = options(), o.rank = 3;
  expect_error(ErrorKind::usage, {"a rank must lie between", "dt_proj (64, 2)"}, [&] { Trainer(data_for(o), o); });
  o = options("lora", "ssm,head");
  expect_error(ErrorKind::usage, {"no layer is called 'head'"}, [&] { Trainer(data_for(o), o); });
}

// ---- the program ------------------------------------------------------------------------------------------------------------

using AdapterProgram = ProgramTest;

TEST_F(AdapterProgram, TrainsShowsMergesAndExtracts) {
  folder_.write("words.txt", words_text(9000));
  const std::string common = " --device cpu --data words.txt --batch 2 --length 16 --steps 4 --sample 0 ";
  expect_words(shell("weft train --width 32 --layers 2 --out base" + common), 0, {"saved: base"});
  const Outcome trained = shell("weft train --from base --adapter lora --rank 2 --lr 1e-2 --out run" + common);
  expect_words(trained, 0,
               {"adapter: LoRA, rank 2, alpha 16: in_proj 2, x_proj 2, dt_proj 2, out_proj 2 layers",
                "trainable params: ", " || all params: ", "saved: run"});
  expect_words(shell("weft check run"), 0, {"every byte is as it was written"});
  expect_words(shell("weft adapter info run"), 0,
               {"layer", "in_proj", "dt_proj", "LoRA, rank 2, alpha 16", "trainable params: "});
  expect_words(shell("weft adapter extract --from run --out taken"), 0, {"saved: taken"});
  expect_words(shell("weft adapter info taken"), 0, {"of the model: ", "base", "trainable params: "});
  expect_words(shell("weft adapter merge --from run --out merged"), 0, {"merged: LoRA", "saved: merged"});
  expect_words(shell("ls merged"), 0, {"config.json", "model.safetensors"});
  const std::string text = " --prompt the --tokens 20 --temperature 0 --device cpu 2>/dev/null";
  const std::string made = shell("weft generate --from run" + text).text;
  EXPECT_GE(made.size(), 20u);
  EXPECT_EQ(shell("weft generate --from base --adapter taken" + text).text, made);
  EXPECT_EQ(shell("weft generate --from base --adapter run" + text).text, made);
  const auto loss = [&](const std::string& from) {
    const std::string said = shell("weft eval --device cpu --data words.txt --length 16 --from " + from).text;
    const std::size_t at = said.find("loss ");
    EXPECT_NE(at, said.npos) << said;
    return at == said.npos ? "" : said.substr(at, 11);
  };
  EXPECT_EQ(loss("run"), loss("base --adapter taken"));
  EXPECT_EQ(loss("run"), loss("merged"));
  EXPECT_NE(loss("run"), loss("base"));
  expect_words(shell("weft train --resume run --steps 5"), 0, {"resumed after step 4", "adapter: LoRA", "saved: run"});

  expect_words(shell("weft train --from base --adapter lora --rank 2 --width 16" + common), 2,
               {"--width is that of the model of --from"});
  expect_words(shell("weft train --from base --adapter lora --targets in_porj" + common), 2, {"did you mean 'in_proj'?"});
  expect_words(shell("weft train --from base --adapter lorra" + common), 2, {"did you mean 'lora'?"});
  expect_words(shell("weft train --from nowhere --adapter lora" + common), 4, {"nowhere"});
  expect_words(shell("weft adapter merge --from base --out m"), 4, {"there is no adapter", "--adapter"});
  expect_words(shell("weft adapter info base"), 4, {"there is no adapter"});
  expect_words(shell("weft generate --from taken"), 4, {"an adapter, not a model", "--adapter"});
  expect_words(shell("weft generate --from base --adapter base"), 4, {"there is no adapter"});
  expect_words(shell("weft adapter unmerge"), 2, {"unknown subcommand 'unmerge'; did you mean 'merge'?"});
}

}  // namespace
}  // namespace weft
