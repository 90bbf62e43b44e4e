#include "tools/ablate/pictures.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "jit/error.h"
#include "jit/json.h"
#include "nn/safetensors.h"

namespace weft {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr const char* kStudyLook =
    "set encoding utf8\nset border 3 lc rgb '#555555'\nset tics nomirror textcolor rgb '#222222'\n"
    "set grid lt 1 lc rgb '#e4e4e4'\nset style fill solid 0.9 noborder\nset bars 0.6\nset key noenhanced\n";

// Blocks of data, by number.
class Blocks {
 public:
  explicit Blocks(const std::string& name) : file_(gnuplot_file(name + ".dat")) {}
  // What a plot begins with to read the block.
  std::string add(const std::string& what, const std::string& lines) {
    text_ += fmt::format("# {}\n{}\n\n", what, lines.empty() ? "NaN NaN NaN NaN NaN\n" : lines);  // none may be empty
    return fmt::format("{} index {}", file_, count_++);
  }
  const std::string& text() const { return text_; }

 private:
  std::string file_, text_;
  int count_ = 0;
};

std::string colour_of(std::size_t model) { return kColours[model % kColours.size()]; }
unsigned colour_number(const std::string& colour) { return unsigned(std::stoul(colour.substr(1), nullptr, 16)); }
unsigned lighter(unsigned colour) {  // 45 % of it on white
  unsigned out = 0;
  for (int shift = 16; shift >= 0; shift -= 8) out |= unsigned(255 - 0.45 * (255 - double(colour >> shift & 255))) << shift;
  return out;
}

std::string joined_plots(const std::vector<std::string>& plots) {
  std::string text;
  for (const std::string& plot : plots) text += (text.empty() ? "plot " : ", \\\n     ") + plot;
  return text + "\n";
}

// "12.3", "1230", "0.0123", "12.3 ± 0.4"
std::string short_number(double value, double deviation = 0) {
  const int digits = value == 0 ? 0 : std::clamp(2 - int(std::floor(std::log10(std::abs(value)))), 0, 6);
  const std::string text = fmt::format("{:.{}f}", value, digits);
  return deviation > 0 ? fmt::format("{} ± {:.{}f}", text, deviation, digits) : text;
}

// Of a logarithmic axis: 1, 2, 5, 10, ..., or more where these are few.
std::string logarithmic_tics(double least, double most) {
  std::vector<std::string> tics;
  for (const std::vector<double>& digits : {std::vector<double>{1, 2, 5}, {1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9}}) {
    tics.clear();
    for (double power = std::pow(10, std::floor(std::log10(least))); power <= most; power *= 10)
      for (const double digit : digits)
        if (digit * power >= least && digit * power <= most) tics.push_back(fmt::format("{:.6g}", digit * power));
    if (tics.size() >= 3) break;
  }
  return fmt::format("({})", fmt::join(tics, ", "));
}

// The models from the top to the bottom, on the y axis of horizontal bars.
std::string model_axis(const StudyPlan& plan) {
  std::string tics;
  const std::size_t n = plan.models.size();
  for (std::size_t m = 0; m < n; ++m) tics += fmt::format("{}{} {}", m ? ", " : "", gnuplot_word(plan.models[m].title), n - m);
  return fmt::format("set yrange [0.4:{}.6]\nset ytics ({})\n", n, tics);
}

// Horizontal bars with their values, of one or more rows a model: (offset of the row's centre, colour, value).
struct BarRow {
  double at;
  unsigned colour;
  Spread value;
};
std::string bars_panel(Blocks& blocks, const StudyPlan& plan, const std::string& title, const std::string& unit,
                       const std::vector<BarRow>& rows, double height, const std::string& more = "") {
  std::string lines;
  double most = 0;
  bool errors = false;
  for (const BarRow& row : rows) {
    if (!row.value) continue;
    lines += fmt::format("{:.4g} {:.6g} {:.6g} {} \"{}\"\n", row.at, row.value.mean, row.value.deviation, row.colour,
                         short_number(row.value.mean, row.value.deviation));
    most = std::max(most, row.value.mean + row.value.deviation), errors |= row.value.deviation > 0;
  }
  if (lines.empty()) return "set multiplot next\n";
  const std::string data = blocks.add(title + ": row, mean, deviation, colour, label", lines);
  std::vector<std::string> plots = {fmt::format(
      "{} using 2:1:(0):2:($1-{:.3g}):($1+{:.3g}):4 with boxxyerror lc rgb variable notitle", data, height / 2, height / 2)};
  if (errors) plots.push_back(data + " using 2:1:3 with xerrorbars pt 0 lw 1.5 lc rgb '#222222' notitle");
  plots.push_back(data + " using ($2+$3):1:5 with labels left offset 0.7,0 font ',10' notitle");
  return fmt::format("set title {}\nset xlabel {}\nset xrange [0:{:.6g}]\nset xtics autofreq\n{}{}", gnuplot_word(title),
                     gnuplot_word(unit), most > 0 ? 1.35 * most : 1.0, model_axis(plan), more) +
         joined_plots(plots);
}

std::string column_panel(Blocks& blocks, const StudyResults& s, const std::string& column, const std::string& title,
                         const std::string& unit, double factor = 1) {
  std::vector<BarRow> rows;
  const std::size_t n = s.plan.models.size();
  for (std::size_t m = 0; m < n; ++m) {
    Spread v = study_column(column).value(s, m);
    v.mean *= factor, v.deviation *= factor;
    rows.push_back({double(n - m), colour_number(colour_of(m)), v});
  }
  return bars_panel(blocks, s.plan, title, unit, rows, 0.62);
}

// The perplexities of each model on one line: the best on the way, and those at the ends of the stages.
std::string perplexity_panel(Blocks& blocks, const StudyResults& s) {
  struct Mark {
    const char *column, *title;
    int point;
  };
  constexpr Mark kMarks[] = {
      {"best_ppl", "best on the way", 7}, {"pretrain_ppl", "after pretraining", 4}, {"orpo_ppl", "after ORPO", 9}};
  const std::size_t n = s.plan.models.size();
  std::string lines[3], ranges, labels;
  double least = 1e300, most = 0;
  for (std::size_t m = 0; m < n; ++m) {
    double low = 1e300, high = 0;
    for (int k = 0; k < 3; ++k) {
      const Spread v = study_column(kMarks[k].column).value(s, m);
      if (!v || !std::isfinite(v.mean)) continue;
      lines[k] += fmt::format("{} {:.6g} {:.6g} {}\n", n - m, v.mean, v.deviation, colour_number(colour_of(m)));
      low = std::min(low, v.mean), high = std::max(high, v.mean);
      if (k == 0) labels += fmt::format("{} {:.6g} \"{}\"\n", n - m, v.mean, short_number(v.mean));
    }
    if (high == 0) continue;
    ranges += fmt::format("{} {:.6g} {:.6g}\n", n - m, low, high - low);
    least = std::min(least, low), most = std::max(most, high);
  }
  if (most == 0) return "set multiplot next\n";
  const double margin = 1.05 * std::pow(most / least, 0.08);
  least /= margin, most *= margin;
  std::vector<std::string> plots = {blocks.add("perplexity: row, least, the rest", ranges) +
                                    " using 2:1:3:(0) with vectors nohead lw 2 lc rgb '#bbbbbb' notitle"};
  for (int k = 0; k < 3; ++k) {
    if (lines[k].empty()) continue;
    const std::string data = blocks.add(fmt::format("perplexity, {}: row, mean, deviation, colour", kMarks[k].title), lines[k]);
    if (s.plan.seeds > 1) plots.push_back(data + " using 2:1:3 with xerrorbars pt 0 lc rgb '#222222' notitle");
    plots.push_back(fmt::format("{} using 2:1:4 with points pt {} ps 1.6 lw 2 lc rgb variable notitle", data, kMarks[k].point));
    plots.push_back(fmt::format("NaN with points pt {} ps 1.4 lw 2 lc rgb '#444444' title {}", kMarks[k].point,
                                gnuplot_word(kMarks[k].title)));
  }
  plots.push_back(blocks.add("best perplexity: row, value, label", labels) +
                  " using 2:($1+0.33):3 with labels font ',10' notitle");
  return fmt::format(
             "set title 'Perplexity of the validation part (less is better)'\nset xlabel 'perplexity a token, logarithmic'\n"
             "set logscale x\nset xtics {}\nset xrange [{:.4g}:{:.4g}]\n{}set yrange [-0.6:{}.7]\nset key bottom right "
             "horizontal samplen "
             "1\n",
             logarithmic_tics(least, most), least, most, model_axis(s.plan), n) +
         joined_plots(plots) + "unset logscale x\nunset key\n";
}

// A curve's mean over the seeds, where their points have the same places.
struct CurvePoint {
  double x;
  Spread y;
};
std::vector<CurvePoint> mean_curve(const StudyResults& s, std::size_t model, std::size_t stage, Points StageResult::*curve) {
  std::vector<const Points*> curves;
  for (const auto& stages : s.runs[model])
    if (stages[stage]) curves.push_back(&((*stages[stage]).*curve));
  std::vector<CurvePoint> points;
  for (std::size_t i = 0; !curves.empty() && i < curves[0]->size(); ++i) {
    std::vector<double> values;
    for (const Points* c : curves)
      if (i < c->size()) values.push_back((*c)[i].second);
    points.push_back({(*curves[0])[i].first, spread_of(values)});
  }
  return points;
}

std::string curve_lines(const std::vector<CurvePoint>& points) {
  std::string lines;
  for (const CurvePoint& p : points)
    if (std::isfinite(p.y.mean)) lines += fmt::format("{:.6g} {:.6g} {:.6g}\n", p.x, p.y.mean, p.y.deviation);
  return lines;
}

// A line where each stage but the last ends.
std::string borders(const StudyResults& s) {
  std::string text = "unset arrow\n";
  for (std::size_t stage = 0; stage + 1 < s.ends.size(); ++stage)
    text += fmt::format("set arrow from {0:.6g}, graph 0 to {0:.6g}, graph 1 nohead dt 2 lc rgb '#888888'\n", s.ends[stage]);
  return text;
}

// Curves of a stage of ORPO, a model a colour.
std::string orpo_panel(Blocks& blocks, const StudyResults& s, const std::string& title, const std::string& unit,
                       Points StageResult::*curve, const std::string& style, const std::string& more = "") {
  std::vector<std::string> plots;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    const std::string lines = s.plan.stages.size() > 1 ? curve_lines(mean_curve(s, m, 1, curve)) : "";
    if (lines.empty()) continue;
    const std::string data =
        blocks.add(fmt::format("{}, {}: {}, mean, deviation", title, s.plan.models[m].name, s.unit), lines);
    const bool bars = s.plan.seeds > 1 && style.find("points") != style.npos;
    plots.push_back(fmt::format("{} using 1:2{} with {} lw 2 lc rgb '{}' title {}", data, bars ? ":3" : "",
                                bars ? "yerrorlines pt 7 ps 0.6" : style, colour_of(m), gnuplot_word(s.plan.models[m].title)));
  }
  if (plots.empty()) return "set multiplot next\n";
  return fmt::format(
             "unset arrow\nset title {}\nset xlabel {}\nset ylabel {}\nset xrange [{:.6g}:{:.6g}]\nset yrange [*:*]\n"
             "set ytics autofreq\n{}",
             gnuplot_word(title), gnuplot_word(s.unit), gnuplot_word(unit), s.ends[0], s.ends.back(), more) +
         joined_plots(plots);
}

std::string curves_panel(Blocks& blocks, const StudyResults& s) {
  std::vector<std::string> plots, training;
  for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
    bool titled = false;
    for (std::size_t stage = 0; stage < s.plan.stages.size(); ++stage) {
      const std::string what =
          fmt::format("{}, {}: {}, mean, deviation", s.plan.models[m].name, s.plan.stages[stage].name, s.unit);
      if (const std::string lines = curve_lines(mean_curve(s, m, stage, &StageResult::validation)); !lines.empty())
        plots.push_back(fmt::format("{} using 1:2{} lw 2 lc rgb '{}' {}", blocks.add("validation loss, " + what, lines),
                                    s.plan.seeds > 1 ? ":3 with yerrorlines pt 7 ps 0.4" : " with linespoints pt 7 ps 0.4",
                                    colour_of(m),
                                    std::exchange(titled, true) ? "notitle" : "title " + gnuplot_word(s.plan.models[m].title)));
      if (stage > 0) continue;  // another loss
      if (const std::string lines = curve_lines(mean_curve(s, m, stage, &StageResult::training)); !lines.empty())
        training.push_back(fmt::format("{} using 1:2 with lines dt 3 lw 1.5 lc rgb '{}' notitle",
                                       blocks.add("training loss, " + what, lines), colour_of(m)));
    }
  }
  plots.insert(plots.end(), training.begin(), training.end());
  if (plots.empty()) return "set multiplot next\n";
  return borders(s) +
         fmt::format(
             "set title 'Loss: validation (solid), pretraining (dotted)'\nset xlabel {}\nset ylabel 'nats a token'\n"
             "set xrange [0:{:.6g}]\nset yrange [*:*]\nset ytics autofreq\nset key top left\n",
             gnuplot_word(s.unit), s.ends.back()) +
         joined_plots(plots) + "unset arrow\n";
}

std::string rate_panel(Blocks& blocks, const StudyResults& s) {
  std::vector<std::string> plots;
  for (std::size_t stage = 0; stage < s.plan.stages.size(); ++stage)
    for (std::size_t m = 0; m < s.plan.models.size(); ++m) {
      const std::string lines = curve_lines(mean_curve(s, m, stage, &StageResult::rate));
      if (lines.empty()) continue;
      plots.push_back(fmt::format("{} using 1:2 with lines lw 2.5 lc rgb '{}' title {}",
                                  blocks.add("learning rate, " + s.plan.stages[stage].name, lines), kColours[stage],
                                  gnuplot_word(s.plan.stages[stage].title())));
      break;  // the same for all models
    }
  if (plots.empty()) return "set multiplot next\n";
  return borders(s) +
         fmt::format(
             "set title 'Learning rate'\nset xlabel {}\nset ylabel 'learning rate'\nset xrange [0:{:.6g}]\n"
             "set yrange [0:*]\nset ytics autofreq\nset format y '%.1e'\nset key top right\n",
             gnuplot_word(s.unit), s.ends.back()) +
         joined_plots(plots) + "unset arrow\nset format y '%h'\n";
}

std::string stage_bars(Blocks& blocks, const StudyResults& s) {
  std::vector<BarRow> rows;
  const std::size_t n = s.plan.models.size();
  for (std::size_t m = 0; m < n; ++m) {
    const unsigned colour = colour_number(colour_of(m));
    rows.push_back({double(n - m) + 0.2, lighter(colour), study_column("pretrain_ppl").value(s, m)});
    rows.push_back({double(n - m) - 0.2, colour, study_column("orpo_ppl").value(s, m)});
  }
  return bars_panel(blocks, s.plan, "Perplexity after pretraining (light) and after ORPO (dark)", "perplexity a token", rows,
                    0.36, "unset ylabel\n");
}

// Of Matplotlib's viridis (CC0): lightness alone tells the order.
constexpr const char* kViridis =
    "set palette defined (0 '#440154', 1 '#472c7a', 2 '#3b518b', 3 '#2c718e', 4 '#21908d', 5 '#27ad81', 6 '#5cc863', "
    "7 '#aadc32', 8 '#fde725')\n";

std::string matrix_lines(std::span<const float> map, std::int64_t n) {
  std::string lines;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) lines += fmt::format("{}{:.3g}", j ? " " : "", map[std::size_t(i * n + j)]);
    lines += "\n";
  }
  return lines;
}

constexpr std::array kSharers = {"meta tokens", "first token of the text", "the token itself", "other tokens"};
constexpr std::array kSharerColours = {"#0072b2", "#e69f00", "#009e73", "#bbbbbb"};

std::string shares_panel(Blocks& blocks, const json& attention) {
  std::string lines, tics;
  const std::size_t n = attention.at("layers").size();
  for (std::size_t l = 0; l < n; ++l) {
    double before = 0;
    lines += fmt::format("{}", n - l);
    for (std::size_t k = 0; k < kSharers.size(); ++k) {
      const double share = 100 * attention.at("shares").at(l).at(k).get<double>();
      lines += fmt::format(" {:.4g} {:.4g}", before, before + share);
      before += share;
    }
    lines += "\n";
    tics += fmt::format("{}'layer {}' {}", l ? ", " : "", attention.at("layers").at(l).get<std::int64_t>(), n - l);
  }
  const std::string data = blocks.add("shares of attention: row, then from and to of each", lines);
  std::vector<std::string> plots;
  for (std::size_t k = 0; k < kSharers.size(); ++k)
    plots.push_back(fmt::format("{} using {}:1:{}:{}:($1-0.3):($1+0.3) with boxxyerror lc rgb '{}' title {}", data, 3 + 2 * k,
                                2 + 2 * k, 3 + 2 * k, kSharerColours[k], gnuplot_word(kSharers[k])));
  return fmt::format(
             "unset arrow\nunset colorbox\nset grid\nset title 'What the tokens of the text attend to'\n"
             "set xlabel '% of attention, mean over heads and tokens'\nunset ylabel\nset xrange [0:100]\nset yrange "
             "[-0.7:{}.6]\n"
             "set xtics autofreq\nset ytics ({})\nset size noratio\nset key bottom center horizontal maxrows 2 samplen 1.5\n",
             n, tics) +
         joined_plots(plots);
}

}  // namespace

Picture results_picture(const StudyResults& s, const std::string& name) {
  Blocks blocks(name);
  std::string plots =
      fmt::format("set multiplot layout 2,3 title {} font ',15' margins 0.105,0.985,0.075,0.90 spacing 0.115,0.15\nunset key\n",
                  gnuplot_word(fmt::format("{} models on {}, {}", s.plan.models.size(),
                                           fs::path(s.plan.source).filename().string(), s.device)));
  plots += perplexity_panel(blocks, s);
  plots += column_panel(blocks, s, "infer_tok_s", "Inference speed, one text", "tokens/s");
  plots += column_panel(blocks, s, "train_tok_s", "Training speed, pretraining", "thousand tokens/s", 1e-3);
  plots += column_panel(blocks, s, "params_m", "Parameters", "millions");
  plots += column_panel(blocks, s, "kv_reduction", "KV cache: layers with attention for each cache", "times");
  plots += column_panel(blocks, s, "train_seconds", "Training time, both stages", "seconds");
  return {.data = blocks.text(),
          .look = kStudyLook,
          .plots = plots + "unset multiplot\n",
          .width = 1650,
          .height = 900,
          .endings = {".png"}};
}

Picture stages_picture(const StudyResults& s, const std::string& name) {
  Blocks blocks(name);
  std::string plots =
      fmt::format("set multiplot layout 3,2 title {} font ',15' margins 0.125,0.985,0.055,0.93 spacing 0.1,0.085\nunset key\n",
                  gnuplot_word("Pretraining, then ORPO"));
  plots += stage_bars(blocks, s);
  plots += curves_panel(blocks, s) + rate_panel(blocks, s);
  plots += orpo_panel(blocks, s, "ORPO: loss of the chosen texts (training)", "nats a token", &StageResult::nll, "lines");
  plots += orpo_panel(blocks, s, "ORPO: odds ratio's part of the loss (training)", "nats", &StageResult::odds, "lines");
  plots += orpo_panel(blocks, s, "ORPO: held-out pairs with the true text preferred", "share", &StageResult::accuracies,
                      "linespoints pt 7 ps 0.6", "set key bottom right\n");
  return {.data = blocks.text(),
          .look = kStudyLook,
          .plots = plots + "unset multiplot\n",
          .width = 1400,
          .height = 1400,
          .endings = {".png"}};
}

Picture attention_picture(const fs::path& measured, const fs::path& maps, const std::string& title, const std::string& name) {
  Blocks blocks(name);
  const json attention = read_json(measured).at("attention");
  const TensorMap tensors = read_safetensors(maps);
  const HostTensor& map = tensors.at("maps");
  const std::int64_t count = map.shape.at(0), n = map.shape.at(1), meta = attention.at("meta");
  if (count != std::int64_t(attention.at("layers").size()))
    fail(ErrorKind::io, "ablate: the maps are not those that were measured", maps.string(), "measure anew: remove both files");
  const std::vector<float> values = map.values<float>();
  std::string plots = fmt::format(
      "set multiplot layout 2,3 title {} font ',15' margins 0.05,0.95,0.07,0.90 spacing 0.09,0.13\nunset key\n"
      "{}set logscale cb\nset cbrange [1e-4:1]\nset format cb '%.0e'\nset colorbox\nunset grid\nset size ratio -1\n"
      "set xrange [-0.5:{:.1f}]\nset yrange [{:.1f}:-0.5]\nset ylabel 'query'\n",
      gnuplot_word(title), kViridis, double(n) - 0.5, double(n) - 0.5);
  if (meta > 0)
    plots += fmt::format(
        "set arrow 1 from {0:.1f}, graph 0 to {0:.1f}, graph 1 nohead front lw 1.2 lc rgb '#d55e00'\n"
        "set arrow 2 from graph 0, first {0:.1f} to graph 1, first {0:.1f} nohead front lw 1.2 lc rgb '#d55e00'\n",
        double(meta) - 0.5);
  for (std::int64_t k = 0; k < count; ++k) {
    const std::string kind = attention.at("kinds").at(std::size_t(k));
    const std::string data = blocks.add(
        fmt::format("layer {}: attention of query (row) to key", attention.at("layers").at(std::size_t(k)).get<std::int64_t>()),
        matrix_lines(std::span(values).subspan(std::size_t(k * n * n), std::size_t(n * n)), n));
    plots += fmt::format(
        "set title 'layer {} ({})'\nset xlabel 'key{}'\nplot {} matrix using 1:2:($3>0?$3:NaN) with image notitle\n",
        attention.at("layers").at(std::size_t(k)).get<std::int64_t>(), kind,
        meta > 0 ? fmt::format(" (the first {}: meta tokens)", meta) : "", data);
  }
  plots += shares_panel(blocks, attention);
  return {.data = blocks.text(),
          .look = kStudyLook,
          .plots = plots + "unset multiplot\n",
          .width = 1650,
          .height = 1080,
          .endings = {".png"}};
}

}  // namespace weft
