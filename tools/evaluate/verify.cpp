#include "tools/evaluate/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "models/adapters.h"
#include "models/generate.h"
#include "nn/safetensors.h"
#include "ops/ops.h"
#include "optim/adamw.h"

namespace weft {
namespace {

constexpr double kBf16 = 2e-2;  // of the largest logit; of a loss
constexpr double kLogits = 1e-4, kLoss = 1e-5, kGradient = 1e-4, kStep = 1e-4, kStepShare = 0.001;

class Reference {
 public:
  explicit Reference(const std::filesystem::path& file) : name_(file.string()), tensors_(read_safetensors(file)) {}

  bool has(const std::string& name) const { return tensors_.contains(name); }
  const HostTensor& operator[](const std::string& name) const {
    auto found = tensors_.find(name);
    if (found == tensors_.end())
      fail(ErrorKind::io, "verify: the reference lacks a tensor", fmt::format("'{}' in {}", name, name_));
    return found->second;
  }
  std::vector<double> values(const std::string& name) const { return (*this)[name].values<double>(); }
  std::vector<std::int64_t> ids(const std::string& name) const { return (*this)[name].values<std::int64_t>(); }
  std::int64_t dim(const std::string& name, std::size_t axis) const {
    const auto& shape = (*this)[name].shape;
    if (axis >= shape.size())
      fail(ErrorKind::io, "verify: a tensor has too few dimensions", fmt::format("'{}' in {}", name, name_));
    return shape[axis];
  }

 private:
  std::string name_;
  TensorMap tensors_;
};

// The largest |a - b|; NaN counts as infinite, so does another length.
double largest_difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = std::abs(a[i] - b[i]);
    largest = std::isnan(d) ? std::numeric_limits<double>::infinity() : std::max(largest, d);
  }
  return largest;
}

double largest(const std::vector<double>& a) {
  double m = 0;
  for (double x : a) m = std::max(m, std::abs(x));
  return m;
}

struct Verifier {
  std::unique_ptr<LanguageModel> model;  // first: what is wrong with it explains more
  Reference reference;
  Tensor inputs, labels;  // (b, t), (b, t-1)
  std::vector<VerifyRow> rows;
  bool bf16;

  Verifier(const std::filesystem::path& folder, DType dtype)
      : model(LanguageModel::load(folder, dtype)), reference(folder / "reference.safetensors"), bf16(dtype == DType::bf16) {
    const std::int64_t b = reference.dim("input_ids", 0), t = reference.dim("input_ids", 1);
    inputs = Tensor::from(reference.ids("input_ids"), {b, t});
    if (!has_loss()) return;
    const std::vector<std::int64_t> all = reference.ids(reference.has("labels") ? "labels" : "input_ids");
    if (t < 2 || std::int64_t(all.size()) != b * t)
      fail(ErrorKind::io, "verify: labels are needed for each of at least two input_ids",
           fmt::format("{} labels, input_ids ({}, {})", all.size(), b, t));
    std::vector<std::int64_t> shifted;
    for (std::int64_t r = 0; r < b; ++r) shifted.insert(shifted.end(), all.begin() + r * t + 1, all.begin() + (r + 1) * t);
    labels = Tensor::from(shifted, {b, t - 1});
  }

  bool has_loss() const { return reference.has("loss"); }
  bool has_gradients() const { return !bf16 && (adapted() || reference.has("grad." + model->named_parameters()[0].name)); }
  bool adapted() const { return !model->parts<Adapter>().empty(); }

  void add(std::string what, double error, double tolerance, std::string unit) {
    rows.push_back({std::move(what), error, tolerance, std::move(unit)});
  }

  // "base_model.model.X.ia3_l.default", as PEFT calls the adapter of layer X in memory.
  static std::string peft_name(const std::string& name) {
    const std::string mark = fmt::format(".adapter.{}.", kAdapter);
    const std::size_t at = name.find(mark);
    std::string own = name.substr(at + mark.size());
    own.insert(std::min(own.find('.'), own.size()), fmt::format(".{}", kAdapter));
    return fmt::format("base_model.model.{}.{}", name.substr(0, at), own);
  }

  // The mean cross-entropy of the labels shifted by one.
  Tensor loss_of(const Tensor& logits) { return cross_entropy(slice(logits, 1, 0, logits.dim(1) - 1), labels); }

  void compare(std::string what, const std::vector<double>& logits, const std::string& expected_name) {
    const std::vector<double> expected = reference.values(expected_name);
    const double difference = largest_difference(logits, expected);
    if (bf16)
      add(std::move(what), difference / largest(expected), kBf16, "of the largest");
    else
      add(std::move(what), difference, kLogits, "max |difference|");
  }

  std::vector<double> logits() {
    return run([&] { return no_grad([&] { return (*model)(inputs); }); }).to_host<double>();
  }

  // The logits after each prefix of one token or more, by steps with a cache.
  std::vector<double> cached_logits() {
    const std::int64_t b = inputs.dim(0), t = inputs.dim(1), v = model->vocab();
    const std::vector<std::int64_t> ids = inputs.to_host<std::int64_t>();
    const auto cache = model->make_cache(b);
    std::vector<double> all(std::size_t(b * t * v));
    for (std::int64_t k = 0; k < t; ++k) {
      std::vector<std::int64_t> column;
      for (std::int64_t r = 0; r < b; ++r) column.push_back(ids[std::size_t(r * t + k)]);
      const Tensor next = Tensor::from(column, {b, 1});
      const Tensor made = run([&] { return k == 0 ? model->prefill(next, *cache) : model->step(next, *cache); });
      const std::vector<double> values = made.to_host<double>();
      const std::int64_t width = made.dim(1);
      for (std::int64_t r = 0; r < b; ++r) std::copy_n(values.begin() + r * width, v, all.begin() + (r * t + k) * v);
    }
    return all;
  }

  void check_logits() {
    if (!adapted()) return compare("logits", logits(), "logits");
    // What adapters do does not depend on the way that the weights are used.
    const std::string expected = reference.has("logits") ? "logits" : "merged_logits";
    compare("logits with the adapter", logits(), expected);
    {
      const Evaluating scope(*model);
      compare("logits in evaluation", logits(), expected);
      compare("logits by steps with a cache", cached_logits(), expected);
    }
    if (!reference.has("merged_logits")) return;
    merge_adapters(*model);
    compare("logits of the merged weights", logits(), "merged_logits");
    unmerge_adapters(*model);
  }

  void check_gradients() {
    const Tensor loss = run([&] {
      Tensor mean = loss_of((*model)(inputs));
      backward(mean);
      return mean;
    });
    add("loss", largest_difference({loss.item()}, reference.values("loss")), bf16 ? kBf16 : kLoss, "|difference|");
    const bool check = has_gradients();
    for (NamedParam& p : model->named_parameters()) {
      if (!check || !p.param.trainable()) {
        p.param.zero_grad();
        continue;
      }
      const std::vector<double> expected = reference.values("grad." + (adapted() ? peft_name(p.name) : p.name));
      const double error = largest_difference(p.param.gradient<double>(), expected) / largest(expected);
      add("gradient " + p.name, error, kGradient, "of the largest entry");
      p.param.zero_grad();
    }
  }

  void check_steps() {
    AdamW optimizer(model->parameters(), {.betas = {0.9, 0.95}, .eps = 1e-8, .weight_decay = 0.1, .clip_norm = 1});
    const std::vector<double> rates = reference.values("lrs");
    std::vector<double> losses, norms;
    for (double rate : rates) {
      optimizer.set_lr(rate);
      auto [loss, norm] = run([&] {
        Tensor mean = loss_of((*model)(inputs));
        backward(mean);
        optimizer.step();
        return std::pair(mean, optimizer.grad_norm());
      });
      losses.push_back(loss.item()), norms.push_back(norm.item());
    }
    add(fmt::format("losses of {} steps", rates.size()), largest_difference(losses, reference.values("losses")),
        bf16 ? kBf16 : kLoss, "max |difference|");
    if (bf16) return;
    const std::vector<double> expected = reference.values("grad_norms");
    add("gradient norms", largest_difference(norms, expected) / largest(expected), kGradient, "of the largest");
    check_parameters(rates.size());
  }

  void check_parameters(std::size_t steps) {
    double off = 0, all = 0;
    for (const NamedParam& p : model->named_parameters()) {
      const std::vector<double> expected = reference.values(fmt::format("step{}.{}", steps, p.name));
      const std::vector<double> actual = p.param.to_host<double>();
      all += double(expected.size());
      for (std::size_t i = 0; i < expected.size(); ++i)
        off += !(i < actual.size() && std::abs(actual[i] - expected[i]) <= kStep);
    }
    add(fmt::format("parameters after {} steps", steps), off / all, kStepShare,
        fmt::format("share off by more than {}", kStep));
  }

  // The reference continues the first tokens of the first row: as many of them as `greedy` begins with.
  void check_greedy() {
    const std::vector<std::int64_t> expected = reference.ids("greedy"), input = reference.ids("input_ids");
    constexpr std::int64_t kPrompt = 8;
    const std::int64_t n = std::int64_t(expected.size());
    if (n < kPrompt || std::int64_t(input.size()) < kPrompt)
      fail(ErrorKind::io, "verify: the greedy continuation or its text is shorter than the prompt",
           fmt::format("{} tokens of {}", n, kPrompt));
    const std::vector<std::int64_t> prompt(input.begin(), input.begin() + kPrompt);
    const std::vector<std::int64_t> actual = generate(*model, prompt, {.tokens = n - kPrompt, .temperature = 0});
    double wrong = 0;
    for (std::size_t i = 0; i < expected.size(); ++i) wrong += actual[i] != expected[i];
    add(fmt::format("greedy continuation, {} tokens", n - kPrompt), wrong, 0, "tokens that differ");
  }
};

}  // namespace

std::vector<VerifyRow> verify_model(const std::filesystem::path& folder, DType dtype) {
  Verifier verifier(folder, dtype);
  verifier.check_logits();
  if (!verifier.bf16 && verifier.reference.has("greedy")) verifier.check_greedy();
  if (verifier.has_loss()) verifier.check_gradients();
  if (verifier.has_loss() && verifier.reference.has("lrs")) verifier.check_steps();  // last: it changes the weights
  return verifier.rows;
}

}  // namespace weft
