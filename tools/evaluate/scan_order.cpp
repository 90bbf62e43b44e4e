#include "tools/evaluate/scan_order.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "autograd/backward.h"
#include "autograd/run.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/gemm.h"
#include "tools/evaluate/eval.h"

namespace weft {
namespace {

using ItemPath = std::vector<std::int64_t>;
using ScanClock = std::chrono::steady_clock;

double passed_since(ScanClock::time_point start) { return std::chrono::duration<double>(ScanClock::now() - start).count(); }

}  // namespace

// ---- hidden states ----------------------------------------------------------------------------------------------------------

std::vector<std::string> sample_texts(const Corpus& corpus, std::int64_t count) {
  constexpr std::size_t kLeast = 10;
  const auto characters = [](std::string_view text) {
    return std::size_t(std::ranges::count_if(text, [](char c) { return (std::uint8_t(c) & 0xc0) != 0x80; }));
  };
  std::vector<std::string> texts;
  TextReader reader(corpus);
  std::string document;  // as far as it has been read
  const auto take = [&](std::string_view text) {
    if (std::int64_t(texts.size()) < count && characters(text) >= kLeast) texts.emplace_back(text);
  };
  while (std::int64_t(texts.size()) < count) {
    const auto part = reader.next(corpus.size(), Cut::lines);
    if (!part) break;
    if (holds_documents(corpus.name())) {
      document += part->text;
      if (part->ends_document) take(std::exchange(document, {}));
      continue;
    }
    for (const std::string_view line : lines_of(part->text)) take(line);
  }
  if (std::int64_t(texts.size()) < count)
    fail(ErrorKind::io, corpus.name() + ": too few texts",
         fmt::format("{} lines or documents of at least {} characters, {} are wanted", texts.size(), kLeast, count),
         "give a longer text, or fewer --texts");
  return texts;
}

HostTensor extract_hidden_states(LanguageModel& model, const Tokenizer& tokenizer, const std::vector<std::string>& texts,
                                 std::int64_t length) {
  const StreamLayout layout = model.stream_layout();
  if (layout.mixers.empty())
    fail(ErrorKind::usage, "scan order: this family has no mixers that take one", model.description(),
         "take a Mamba or Mamba-2");
  if (is_scan_patched(model))
    fail(ErrorKind::usage, "scan order: the model is patched, so its hidden states have another order",
         to_text(get_permutation_info(model)), "remove_scan_patch(model) first (weft scan-order remove)");
  const Evaluating scope(model);
  std::vector<float> all;
  for (const std::string& text : texts) {
    std::vector<std::int64_t> ids = tokenizer.encode(text);
    ids.resize(std::min(ids.size(), std::size_t(length)));
    if (ids.empty()) continue;
    const Tensor input = Tensor::from(ids, {1, std::int64_t(ids.size())});
    const std::vector<float> states = run([&] {
                                        return no_grad([&] {
                                          model(input);
                                          return cast(tap(layout.mixers.back()).input, DType::f32);
                                        });
                                      }).to_host<float>();
    all.insert(all.end(), states.begin(), states.end());
  }
  return HostTensor::from<float>(DType::f32, {std::int64_t(all.size()) / layout.width, layout.width}, all);
}

// ---- paths ------------------------------------------------------------------------------------------------------------------

SquareMatrix correlation(const std::vector<float>& x, std::int64_t rows, std::int64_t n) {
  std::vector<double> centred(x.begin(), x.end());
  for (std::int64_t j = 0; j < n; ++j) {
    double mean = 0, squares = 0;
    for (std::int64_t r = 0; r < rows; ++r) mean += centred[std::size_t(r * n + j)];
    mean /= double(std::max<std::int64_t>(rows, 1));
    for (std::int64_t r = 0; r < rows; ++r) squares += std::pow(centred[std::size_t(r * n + j)] -= mean, 2);
    // What is left of a constant column is rounding, of its size.
    const double scale = squares > double(rows) * std::pow(1e-12 * mean, 2) ? 1 / std::sqrt(squares) : 0;
    for (std::int64_t r = 0; r < rows; ++r) centred[std::size_t(r * n + j)] *= scale;
  }
  SquareMatrix result{n, std::vector<double>(std::size_t(n * n))};
  const GemmInput columns{reinterpret_cast<const std::byte*>(centred.data()), DType::f64, n, 1};
  gemm<double>(n, n, rows, columns.transposed(), columns, {reinterpret_cast<std::byte*>(result.values.data()), DType::f64, n});
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) {
      double& r = result.values[std::size_t(i * n + j)];
      r = i == j ? 1 : j < i ? result(j, i) : std::clamp(r, -1.0, 1.0);
    }
  return result;
}

SquareMatrix scan_cost(const SquareMatrix& correlation) {
  SquareMatrix cost = correlation;
  for (double& value : cost.values) value = 1 - std::abs(value);
  return cost;
}

double path_cost(const SquareMatrix& cost, const ItemPath& path) {
  double sum = 0;
  for (std::size_t t = 0; t + 1 < path.size(); ++t) sum += cost(path[t], path[t + 1]);
  return sum;
}

ItemPath nearest_neighbour(const SquareMatrix& cost, std::int64_t start) {
  ItemPath path = {start};
  std::vector<bool> left(std::size_t(cost.n), true);
  left[std::size_t(start)] = false;
  while (std::int64_t(path.size()) < cost.n) {
    std::int64_t nearest = -1;
    for (std::int64_t j = 0; j < cost.n; ++j)
      if (left[std::size_t(j)] && (nearest < 0 || cost(path.back(), j) < cost(path.back(), nearest))) nearest = j;
    path.push_back(nearest);
    left[std::size_t(nearest)] = false;
  }
  return path;
}

namespace {

constexpr double kLeastGain = 1e-12;

// A path and what its steps cost from its beginning, forwards and backwards, so that the cost of a reversed part is a
// difference.
class Improver {
 public:
  Improver(const SquareMatrix& cost, ItemPath path)
      : cost_(cost), path_(std::move(path)), n_(cost.n), forth_(path_.size()), back_(path_.size()) {
    sum();
  }

  ItemPath improved() {
    for (bool any = true; any;) {
      any = reversed_parts();
      any |= moved_parts();
    }
    return std::move(path_);
  }

 private:
  // Of a step between two places; none beyond the ends of the path.
  double step(std::int64_t from, std::int64_t to) const {
    return from < 0 || to >= n_ ? 0 : cost_(path_[std::size_t(from)], path_[std::size_t(to)]);
  }
  double join(std::int64_t from, std::int64_t to) const {
    return from < 0 || to < 0 ? 0 : cost_(from, to);
  }  // of items; -1: none
  std::int64_t item(std::int64_t place) const { return place < 0 || place >= n_ ? -1 : path_[std::size_t(place)]; }

  void sum() {
    for (std::size_t t = 1; t < path_.size(); ++t) {
      forth_[t] = forth_[t - 1] + cost_(path_[t - 1], path_[t]);
      back_[t] = back_[t - 1] + cost_(path_[t], path_[t - 1]);
    }
  }

  bool reversed_parts() {
    bool any = false;
    for (std::int64_t i = 0; i + 1 < n_; ++i)
      for (std::int64_t j = i + 1; j < n_; ++j) {
        const double inside =
            (back_[std::size_t(j)] - back_[std::size_t(i)]) - (forth_[std::size_t(j)] - forth_[std::size_t(i)]);
        const double gain = step(i - 1, i) + step(j, j + 1) - join(item(i - 1), item(j)) - join(item(i), item(j + 1)) - inside;
        if (!(gain > kLeastGain)) continue;
        std::reverse(path_.begin() + i, path_.begin() + j + 1);
        sum();
        any = true;
      }
    return any;
  }

  bool moved_parts() {
    bool any = false;
    for (std::int64_t size = 1; size <= 3; ++size)
      for (std::int64_t i = 0; i + size <= n_; ++i) any |= move(i, size);
    return any;
  }

  // Places [i, i + size) into the first gap, that before a place k, where it lowers the cost.
  bool move(std::int64_t i, std::int64_t size) {
    const std::int64_t end = i + size, first = item(i), last = item(end - 1);
    const double freed = step(i - 1, i) + step(end - 1, end) - join(item(i - 1), item(end));
    const double inside =
        (back_[std::size_t(end - 1)] - back_[std::size_t(i)]) - (forth_[std::size_t(end - 1)] - forth_[std::size_t(i)]);
    for (std::int64_t k = 0; k <= n_; ++k) {
      if (k >= i && k <= end) continue;
      const double gap = step(k - 1, k);
      for (const bool turned : {false, true}) {
        const double paid =
            turned ? join(item(k - 1), last) + join(first, item(k)) + inside : join(item(k - 1), first) + join(last, item(k));
        if (!(freed + gap - paid > kLeastGain)) continue;
        if (turned) std::reverse(path_.begin() + i, path_.begin() + end);
        if (k < i)
          std::rotate(path_.begin() + k, path_.begin() + i, path_.begin() + end);
        else
          std::rotate(path_.begin() + i, path_.begin() + end, path_.begin() + k);
        sum();
        return true;
      }
    }
    return false;
  }

  const SquareMatrix& cost_;
  ItemPath path_;
  std::int64_t n_;
  std::vector<double> forth_, back_;  // of the steps from the first place to each, and of these steps turned
};

}  // namespace

ItemPath improve_path(const SquareMatrix& cost, ItemPath path) {
  const double before = path_cost(cost, path);
  ItemPath improved = Improver(cost, path).improved();
  return path_cost(cost, improved) <= before ? improved : path;
}

ScanOrder shortest_order(const SquareMatrix& cost, ScanMode mode) {
  const ScanClock::time_point start = ScanClock::now();
  if (cost.n < 1) fail(ErrorKind::usage, "scan order: there is nothing to order");
  for (const double value : cost.values)
    if (!std::isfinite(value)) fail(ErrorKind::usage, "scan order: a cost is not finite");
  ScanOrder result{.mode = mode};
  double squares = 0;
  for (std::int64_t i = 0; i < cost.n; ++i)
    for (std::int64_t j = 0; j < cost.n; ++j)
      if (i != j) result.mean += cost(i, j), squares += cost(i, j) * cost(i, j);
  if (const double pairs = double(cost.n) * double(cost.n - 1); pairs > 0) {
    result.mean /= pairs;
    result.deviation = std::sqrt(std::max(0.0, squares / pairs - result.mean * result.mean));
  }
  ItemPath identity(std::size_t(cost.n));
  std::iota(identity.begin(), identity.end(), 0);
  result.identity = path_cost(cost, identity);
  const ItemPath near = nearest_neighbour(cost);
  result.nearest = path_cost(cost, near);
  result.order = improve_path(cost, near);
  result.optimised = path_cost(cost, result.order);
  if (result.optimised > result.identity) {
    result.order = improve_path(cost, identity);
    result.optimised = path_cost(cost, result.order);
  }
  result.inverse = inverse_of(result.order);
  result.seconds = passed_since(start);
  return result;
}

ScanOrder compute_scan_order(const HostTensor& states, ScanMode mode, std::int64_t items, std::string_view name) {
  if (states.shape.size() != 2 || !is_real(states.dtype) || states.numel() == 0)
    fail(ErrorKind::io, fmt::format("{}: not hidden states, which are (tokens, features)", name),
         fmt::format("{} {}", name_of(states.dtype), dims_text(states.shape)));
  const std::vector<float> x = states.values<float>();
  for (std::size_t i = 0; i < x.size(); ++i)
    if (!std::isfinite(x[i]))
      fail(ErrorKind::io, fmt::format("{}: a hidden state is not finite", name),
           fmt::format("token {}, feature {}", i / std::size_t(states.shape[1]), i % std::size_t(states.shape[1])));
  const ScanClock::time_point start = ScanClock::now();
  const std::int64_t tokens = states.shape[0], d = states.shape[1];
  SquareMatrix rho;
  if (mode == ScanMode::tokens) {
    const std::int64_t n = std::min(items, tokens);
    std::vector<float> columns(std::size_t(n * d));  // (d, n): a token is a column
    for (std::int64_t k = 0; k < n; ++k)
      for (std::int64_t i = 0; i < d; ++i) columns[std::size_t(i * n + k)] = x[std::size_t(k * tokens / n * d + i)];
    rho = correlation(columns, d, n);
  } else {
    rho = correlation(x, tokens, d);
  }
  ScanOrder result = shortest_order(scan_cost(rho), mode);
  result.seconds = passed_since(start);
  return result;
}

std::string to_text(const ScanOrder& o) {
  const char* what = o.mode == ScanMode::tokens ? "tokens" : "channels";
  const std::size_t n = o.order.size();
  return fmt::format(
      "{} {}: correlation matrix ({}, {}), cost 1 - |rho| {:.4f} on average, deviation {:.4f}\n"
      "path of {} steps: {:.4f} as they stand, {:.4f} by nearest neighbours, {:.4f} with 2-opt and Or-opt\n"
      "improvement {:.2f} % of the cost (reduction {:.4f}), in {:.2f} s\n",
      n, what, n, n, o.mean, o.deviation, n - 1, o.identity, o.nearest, o.optimised, o.improvement(), o.identity - o.optimised,
      o.seconds);
}

// ---- before and after -------------------------------------------------------------------------------------------------------

std::vector<std::int64_t> generate_by_passes(LanguageModel& model, std::vector<std::int64_t> ids, std::int64_t tokens) {
  const Evaluating scope(model);
  for (std::int64_t n = 0; n < tokens; ++n) {
    const std::int64_t t = std::int64_t(ids.size());
    if (model.context() && t >= *model.context()) break;
    const Tensor input = Tensor::from(ids, {1, t});
    const std::vector<float> last =
        run([&] { return no_grad([&] { return cast(slice(model(input), 1, t - 1, t), DType::f32); }); }).to_host<float>();
    ids.push_back(std::max_element(last.begin(), last.begin() + model.vocab()) - last.begin());
  }
  return ids;
}

namespace {

double median_ms(std::int64_t runs, const std::function<void()>& work) {
  for (int i = 0; i < 3; ++i) work();  // plans, and a GPU's graph
  std::vector<double> times;
  for (std::int64_t i = 0; i < std::max<std::int64_t>(runs, 1); ++i) {
    const ScanClock::time_point start = ScanClock::now();
    work();
    times.push_back(1e3 * passed_since(start));
  }
  std::ranges::sort(times);
  const std::size_t half = times.size() / 2;
  return times.size() % 2 ? times[half] : (times[half - 1] + times[half]) / 2;
}

std::vector<float> logits_of_first(LanguageModel& model, const Batch& batch) {
  const Evaluating scope(model);
  return run([&] { return no_grad([&] { return cast(logits_of(model, batch), DType::f32); }); }).to_host<float>();
}

ScanSide measure_side(LanguageModel& model, const Tokenizer& tokenizer, const BatchSource& data, const ScanReportOptions& o) {
  ScanSide side;
  const Evaluation e = evaluate(model, data, o.batches);
  side.loss = e.loss(), side.perplexity = e.perplexity(), side.counted = e.tokens;
  side.bits = e.characters > 0 ? e.bits_per_character() : 0;
  std::vector<std::vector<std::int64_t>> prompts;
  for (const std::string& prompt : o.prompts) prompts.push_back(tokenizer.encode(prompt.empty() ? "\n" : prompt));
  std::vector<std::vector<std::int64_t>> made(prompts.size());
  side.generate_ms = median_ms(o.runs, [&] {
    for (std::size_t i = 0; i < prompts.size(); ++i) made[i] = generate_by_passes(model, prompts[i], o.tokens);
  });
  for (const std::vector<std::int64_t>& ids : made) side.texts.push_back(tokenizer.decode(ids));
  const Batch batch = data.validation(0);
  side.pass_ms = median_ms(o.runs, [&] { logits_of_first(model, batch); });
  return side;
}

nlohmann::json side_json(const ScanSide& s, bool comparable) {
  nlohmann::json out = {{"tokens", s.counted}, {"texts", s.texts}, {"generate_ms", s.generate_ms}, {"pass_ms", s.pass_ms}};
  out[comparable ? "loss" : "loss_not_causal"] = s.loss;
  if (comparable) out["perplexity"] = s.perplexity;
  if (comparable && s.bits > 0) out["bits_per_character"] = s.bits;
  return out;
}

}  // namespace

ScanReport report_scan_order(LanguageModel& model, const Tokenizer& tokenizer, const BatchSource& data, const ItemPath& order,
                             ScanMode mode, const ScanReportOptions& o) {
  ScanReport report{.mode = mode, .vocabulary = model.vocab()};
  const Batch first = data.validation(0);
  const std::vector<float> before = logits_of_first(model, first);
  report.before = measure_side(model, tokenizer, data, o);
  apply_scan_patch(model, order, mode);
  const std::vector<float> after = logits_of_first(model, first);
  for (std::size_t i = 0; i < before.size(); ++i)
    report.largest_difference = std::max(report.largest_difference, std::abs(double(before[i]) - double(after[i])));
  report.after = measure_side(model, tokenizer, data, o);
  remove_scan_patch(model);
  report.restored = logits_of_first(model, first) == before;
  return report;
}

nlohmann::json to_json(const ScanReport& r, const ScanOrder* computed) {
  nlohmann::json out = {{"mode", name_of(r.mode)},
                        {"comparable", r.comparable()},
                        {"vocabulary", r.vocabulary},
                        {"before", side_json(r.before, true)},
                        {"after", side_json(r.after, r.comparable())},
                        {"largest_logit_difference", r.largest_difference},
                        {"restored_bits", r.restored}};
  if (computed)
    out["path"] = {{"items", computed->order.size()},
                   {"cost_mean", computed->mean},
                   {"cost_deviation", computed->deviation},
                   {"identity", computed->identity},
                   {"nearest", computed->nearest},
                   {"optimised", computed->optimised},
                   {"improvement_percent", computed->improvement()},
                   {"seconds", computed->seconds}};
  return out;
}

std::string to_markdown(const ScanReport& r, const ScanReportOptions& o, std::string_view model, std::string_view data,
                        const ScanOrder* computed) {
  std::string text = fmt::format("# Scan order\n\nModel: {}. Data: {}, {} tokens. Mode: {}.\n\n", model, data, r.before.counted,
                                 name_of(r.mode));
  if (computed) text += to_text(*computed) + "\n";
  switch (r.mode) {
    case ScanMode::channels:
      text +=
          "The weights are permuted with the features, so the model is the same function: differences below are rounding, and "
          "no\n"
          "order of channels can change what it predicts. A shorter path says nothing about time either; the times were "
          "measured.\n";
      break;
    case ScanMode::channels_keep:
      text += "The weights stay where they were, so this changes the model: it was not trained with that order.\n";
      break;
    case ScanMode::tokens:
      text +=
          "Mixers read the positions in another order, so an early one may depend on later ones. What the model then says of "
          "the\n"
          "next token is no prediction: its perplexity is not that of a causal language model, cannot be compared, and is not "
          "given.\n";
      break;
  }
  const auto row = [&](const char* what, const std::string& before, const std::string& after) {
    text += fmt::format("| {} | {} | {} |\n", what, before, after);
  };
  const auto number = [](double value, int digits) { return fmt::format("{:.{}f}", value, digits); };
  const auto causal = [&](double value, int digits) { return r.comparable() ? number(value, digits) : "not comparable"; };
  text += "\n| | before | after |\n| --- | --- | --- |\n";
  row("perplexity a token", number(r.before.perplexity, 4), causal(r.after.perplexity, 4));
  row("loss a token", number(r.before.loss, 6),
      r.comparable() ? number(r.after.loss, 6) : fmt::format("{:.6f}, not causal", r.after.loss));
  if (r.before.bits > 0) row("bits per character", number(r.before.bits, 4), causal(r.after.bits, 4));
  row("a batch, ms", number(r.before.pass_ms, 2), number(r.after.pass_ms, 2));
  row("the texts, ms", number(r.before.generate_ms, 1), number(r.after.generate_ms, 1));
  text += fmt::format("\nTimes are medians of {} runs; a text is made by a pass over all of it for each token.\n", o.runs);
  text += fmt::format("Largest difference of a logit: {:.2e}. Removed again, the logits have {} bits.\n", r.largest_difference,
                      r.restored ? "the same" : "OTHER");
  if (r.before.perplexity > double(r.vocabulary))
    text += fmt::format(
        "\nWarning: a perplexity above {}, the vocabulary, is worse than guessing: something is wrong with the model.\n",
        r.vocabulary);
  for (std::size_t i = 0; i < r.before.texts.size(); ++i)
    text += fmt::format("\n## Text {}\n\nBefore:\n\n```\n{}\n```\n\nAfter{}:\n\n```\n{}\n```\n", i + 1, r.before.texts[i],
                        r.before.texts[i] == r.after.texts[i] ? " (the same)" : "", r.after.texts[i]);
  return text;
}

}  // namespace weft
