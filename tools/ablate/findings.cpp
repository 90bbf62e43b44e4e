#include "tools/ablate/findings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <numeric>
#include <utility>

namespace weft {
namespace {

using Text = std::string;

struct Ranked {
  std::size_t model;
  Spread value;
};

// The models that have the column, the smallest first.
std::vector<Ranked> ranked(const StudyResults& s, const std::string& column) {
  std::vector<Ranked> all;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m)
    if (const Spread v = study_column(column).value(s, m); v && std::isfinite(v.mean)) all.push_back({m, v});
  std::sort(all.begin(), all.end(), [](const Ranked& a, const Ranked& b) { return a.value.mean < b.value.mean; });
  return all;
}

const Text& title(const StudyResults& s, std::size_t m) { return s.plan.models[m].title; }

Text figure(double value) {
  const int digits = value == 0 ? 0 : std::clamp(2 - int(std::floor(std::log10(std::abs(value)))), 0, 4);
  return fmt::format("{:.{}f}", value, digits);
}
Text with_spread(const Spread& v) { return v.deviation > 0 ? figure(v.mean) + " ± " + figure(v.deviation) : figure(v.mean); }
Text between(double least, double most, const Text& unit = "") {
  const Text a = figure(least), b = figure(most);
  return (a == b ? a : a + " to " + b) + unit;
}
Text signed_percent(double change) { return fmt::format("{:+.1f} %", 100 * change); }
Text clock(double seconds) {
  const auto s = std::int64_t(seconds + 0.5);
  return s >= 3600 ? fmt::format("{} h {} min", s / 3600, s / 60 % 60)
         : s >= 60 ? fmt::format("{} min {} s", s / 60, s % 60)
                   : fmt::format("{} s", s);
}

// A value of each model's stage, as a mean over seeds, of those that have it.
std::vector<std::pair<std::size_t, double>> each(const StudyResults& s, std::size_t stage,
                                                 const std::function<double(const StageResult&)>& value) {
  std::vector<std::pair<std::size_t, double>> all;
  for (std::size_t m = 0; stage < s.plan.stages.size() && m < s.plan.models.size(); ++m)
    if (const Spread v = s.of(m, stage, value); v && std::isfinite(v.mean)) all.emplace_back(m, v.mean);
  return all;
}
std::pair<double, double> range_of(const std::vector<std::pair<std::size_t, double>>& values) {
  const auto [low, high] =
      std::minmax_element(values.begin(), values.end(), [](auto& a, auto& b) { return a.second < b.second; });
  return {low->second, high->second};
}

Text ranking(const StudyResults& s) {
  const std::vector<Ranked> all = ranked(s, "best_ppl");
  if (all.empty()) return "No model has been trained yet.";
  std::vector<Text> rest;
  for (std::size_t i = 1; i < all.size(); ++i)
    rest.push_back(fmt::format("{} {}", title(s, all[i].model), with_spread(all[i].value)));
  Text text =
      fmt::format("{} predicts the validation part best: perplexity {}", title(s, all[0].model), with_spread(all[0].value));
  if (const StageResult* r = s.first(all[0].model, 0); r && r->bits_per_character > 0)
    text += fmt::format(" ({:.3f} bits per character)", r->bits_per_character * std::log(all[0].value.mean) / r->loss);
  text += ", the least on the way through both stages.";
  if (rest.empty()) return text;
  text += fmt::format(" Then come {}.", fmt::join(rest, ", "));
  const double gap = all[1].value.mean - all[0].value.mean, noise = std::max(all[0].value.deviation, all[1].value.deviation);
  if (s.plan.seeds == 1)
    text += fmt::format(" The second is {:.1f} % behind; with one seed it is not known how much of that is chance.",
                        100 * gap / all[0].value.mean);
  else
    text += fmt::format(" The second is {:.1f} % behind, which is {} the deviation over seeds.", 100 * gap / all[0].value.mean,
                        gap > 2 * noise ? "more than twice"
                        : gap > noise   ? "more than"
                                        : "within");
  return text;
}

// How much worse pretraining leaves a model than it was at its best.
std::vector<std::pair<std::size_t, double>> overfit(const StudyResults& s) {
  return each(s, 0, [](const StageResult& r) { return std::exp(r.loss - r.best_loss); });
}

Text stopping(const StudyResults& s) {
  const auto ratios = overfit(s), best = each(s, 0, [](const StageResult&r) { return r.best_at; });
  if (ratios.empty()) return "";
  const auto [low, high] = range_of(ratios);
  const auto [early, late] = range_of(best);
  if (high < 1.02)
    return fmt::format(
        "In pretraining validation is best at its end, or within 2 % of it: the models could be trained longer than {} {}.",
        figure(s.ends[0]), s.unit);
  return fmt::format(
      "In pretraining validation is best after {} of {} {}; at its end perplexity is {} times as high. From there on the "
      "models, of {} "
      "million parameters for {} tokens, learn the text by heart.",
      between(early, late), figure(s.ends[0]), s.unit, between(low, high),
      between(ranked(s, "params_m").front().value.mean, ranked(s, "params_m").back().value.mean), s.plan.training_tokens);
}

std::vector<std::pair<std::size_t, double>> orpo_changes(const StudyResults& s) {
  std::vector<std::pair<std::size_t, double>> changes;
  if (s.plan.stages.size() < 2) return changes;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    std::vector<double> values;
    for (const auto& stages : s.runs[m])
      if (stages[0] && stages[1]) values.push_back(std::exp(stages[1]->loss - stages[0]->loss) - 1);
    if (!values.empty()) changes.emplace_back(m, spread_of(values).mean);
  }
  return changes;
}

Text preferring(const StudyResults& s) {
  const auto changes = orpo_changes(s);
  if (changes.empty()) return "";
  const auto [low, high] = range_of(changes);
  Text text = fmt::format("ORPO changes perplexity, against the end of pretraining, by {}{}.", signed_percent(low),
                          changes.size() > 1 ? " to " + signed_percent(high) : "");
  const auto before = each(s, 1, [](const StageResult&r) { return r.accuracy_before < 0 ? NAN : 100 * r.accuracy_before; }),
             after = each(s, 1, [](const StageResult&r) { return r.accuracy < 0 ? NAN : 100 * r.accuracy; });
  if (before.empty()) return text;
  return text +
         fmt::format(
             " Of the pairs held out, the true continuation is the more probable one in {} before ORPO, and in {} at its "
             "end.",
             between(range_of(before).first, range_of(before).second, " %"),
             between(range_of(after).first, range_of(after).second, " %"));
}

Text speeds(const StudyResults& s) {
  const std::vector<Ranked> train = ranked(s, "train_tok_s"), write = ranked(s, "infer_tok_s"),
                            memory = ranked(s, "peak_mem_mb");
  if (train.size() < 2 || write.empty() || memory.empty()) return "";
  const auto ends = [&](const std::vector<Ranked>& all, const Text& unit) {
    return fmt::format("{} {} ({}) and {} ({})", figure(all.back().value.mean), unit, title(s, all.back().model),
                       figure(all.front().value.mean), title(s, all.front().model));
  };
  return fmt::format("Pretraining reads between {}. One text is written at between {}. The most memory is between {}.",
                     ends(train, "tokens/s"), ends(write, "tokens/s"), ends(memory, "MB"));
}

Text caching(const StudyResults& s) {
  std::vector<Text> parts;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    const StageResult* r = s.first(m, 0);
    if (!r) continue;
    parts.push_back(fmt::format("{} {} kB", title(s, m), figure((r->kv_bytes + r->state_bytes) / 1e3)));
    if (r->kv_bytes > 0 && r->kv_bytes < r->kv_bytes_global)
      parts.back() +=
          fmt::format(" (keys and values {:.2f} times smaller than with a cache of its own, of the whole text, in each layer)",
                      r->kv_bytes_global / r->kv_bytes);
  }
  if (parts.empty()) return "";
  std::int64_t window = 0;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m)
    if (const StageResult* r = s.first(m, 0)) window = r->window;
  return fmt::format("What is remembered of a text of {} tokens, states included: {}.", window, fmt::join(parts, ", "));
}

Text gating(const StudyResults& s) {
  Text text;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    const StageResult* r = s.first(m, 0);
    if (!r || r->gates.empty()) continue;
    const auto [low, high] = std::minmax_element(r->gates.begin(), r->gates.end());
    const double mean = std::accumulate(r->gates.begin(), r->gates.end(), 0.0) / double(r->gates.size());
    text += fmt::format(
        "{}{}: attention's share of a layer, which begins at 0.622 and is learned, is {:.3f} after pretraining on average, "
        "from "
        "{:.3f} (layer {}) to {:.3f} (layer {}).",
        text.empty() ? "" : " ", title(s, m), mean, *low, low - r->gates.begin(), *high, high - r->gates.begin());
  }
  return text;
}

}  // namespace

Text setting_of(const StudyResults& s) {
  std::vector<Text> stages;
  for (const StudyStage& stage : s.plan.stages) stages.push_back(stage.title());
  Text text = fmt::format(
      "{} models were trained on {} ({} tokens, and {} to validate with) in stages ({}), {}, on {} in {}; all training steps "
      "together took {}.",
      s.plan.models.size(), std::filesystem::path(s.plan.source).filename().string(), s.plan.training_tokens,
      s.plan.validation_tokens, fmt::join(stages, ", then "),
      s.plan.seeds == 1 ? "with one seed" : fmt::format("with {} seeds", s.plan.seeds),
      s.device.empty() ? "nothing yet" : s.device, s.precision.empty() ? "?" : s.precision, clock(s.seconds));
  if (s.plan.quick)
    text +=
        " This is the quick form of the study: small models and few steps, which show that everything works and say little "
        "about the models.";
  return text;
}

std::vector<Text> findings_of(const StudyResults& s) {
  std::vector<Text> all = {ranking(s), stopping(s), preferring(s), speeds(s), caching(s), gating(s)};
  std::erase(all, "");
  return all;
}

Expectations expectations_of(const StudyResults& s) {
  Expectations e;
  const auto say = [&](bool as_expected, const Text& text) { (as_expected ? e.confirmed : e.surprises).push_back(text); };
  const std::vector<Ranked> best = ranked(s, "best_ppl");
  if (s.plan.quick || best.empty()) return e;
  // Perplexities.
  std::vector<Text> wrong;
  double characters = 0;  // a token
  double least_expected = 1e9;
  for (const Ranked& r : best) {
    const StudyModel& model = s.plan.models[r.model];
    if (model.expected[0] > 0 && (r.value.mean < 0.8 * model.expected[0] || r.value.mean > 1.2 * model.expected[1]))
      wrong.push_back(fmt::format("{} {} for {} to {}", model.title, with_spread(r.value), figure(model.expected[0]),
                                  figure(model.expected[1])));
    if (model.expected[0] > 0) least_expected = std::min(least_expected, model.expected[0]);
    if (const StageResult* run = s.first(r.model, 0); run && run->bits_per_character > 0)
      characters = run->loss / std::log(2.0) / run->bits_per_character;
  }
  if (!wrong.empty()) {
    Text text = fmt::format("The description expects other perplexities: measured are {}.", fmt::join(wrong, ", "));
    if (characters > 0 && least_expected < 0.8 * best[0].value.mean)
      text += fmt::format(
          " A perplexity of {} at {:.2f} characters a token would be {:.2f} bits per character, less than any model of such a "
          "text reaches that has "
          "not read it. The description gives figures like that to just those models that have local attention: they are what "
          "comes out if keys and values are cut to the window "
          "before they are masked, so that a token sees those that it is to predict. Here a test changes a token and finds "
          "every output before it unchanged, bit for "
          "bit, for each of the five models.",
          figure(least_expected), characters, std::log2(least_expected) / characters);
    say(false, text);
  }
  // Hybrids against pure models.
  double hybrid = 1e300, pure = 1e300;
  std::size_t hybrid_model = 0, pure_model = 0;
  for (const Ranked& r : best) {
    const bool both = s.plan.models[r.model].name.starts_with("hybrid");
    double& least = both ? hybrid : pure;
    if (r.value.mean < least) least = r.value.mean, (both ? hybrid_model : pure_model) = r.model;
  }
  if (hybrid < 1e300 && pure < 1e300)
    say(hybrid < 0.5 * pure, fmt::format("Hybrids are expected to be far better than models of one kind. The best hybrid, {}, "
                                         "has perplexity {}, the best other, {}, {}: {:.1f} % {}.",
                                         title(s, hybrid_model), figure(hybrid), title(s, pure_model), figure(pure),
                                         100 * std::abs(hybrid / pure - 1), hybrid < pure ? "less" : "more"));
  const auto value_of = [&](const Text& name) {
    for (const Ranked& r : best)
      if (s.plan.models[r.model].name == name) return r.value.mean;
    return std::nan("");
  };
  const double global = value_of("transformer_global"), local = value_of("transformer_local");
  if (std::isfinite(global + local))
    say(local < 0.5 * global,
        fmt::format("Local attention is expected to be five times better than global. Its perplexity is {}, that of global "
                    "attention {}: {:.1f} % {}.",
                    figure(local), figure(global), 100 * std::abs(local / global - 1), local < global ? "less" : "more"));
  // ORPO.
  if (const auto changes = orpo_changes(s); !changes.empty()) {
    const auto [low, high] = range_of(changes);
    say(low >= -0.06 && high <= -0.015,
        fmt::format("ORPO is expected to improve perplexity by 2 to 5 % in all models. It changes it by {}{}.",
                    signed_percent(low), changes.size() > 1 ? " to " + signed_percent(high) : ""));
  }
  if (const auto ratios = overfit(s); !ratios.empty()) {
    const auto [low, high] = range_of(ratios);
    if (high > 1.1)
      say(false, fmt::format("Thirty epochs are far too many for a text of this size: the last perplexity of pretraining is {} "
                             "times the best one.",
                             between(low, high)));
  }
  say(s.seconds > 2400 && s.seconds < 3600,
      fmt::format("Forty to sixty minutes of an A100 are expected; the training steps took {} here.", clock(s.seconds)));
  return e;
}

}  // namespace weft
