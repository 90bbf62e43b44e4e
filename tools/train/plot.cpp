#include "tools/train/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "jit/error.h"
#include "jit/print.h"
#include "tools/train/gnuplot.h"
#include "tools/train/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Curves {
  std::string title;
  std::string data;  // two blocks of gnuplot's: step, loss, smoothed loss; then step, validation loss
  bool training = false, validation = false;
};

std::string one_line(const std::string& text) {
  std::string line = printable(text);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return line;
}

// The smoothed loss is a mean that forgets over about a hundredth of the run.
Curves curves_of(const fs::path& run) {
  const Metrics metrics = read_metrics(run);
  const fs::path name = fs::absolute(run).lexically_normal();
  Curves curves{(name.has_filename() ? name : name.parent_path()).filename().string(), "", false, false};
  std::string training, validation;
  const double keep = 1 - 1 / std::max(1.0, double(metrics.lines.size()) / 100);
  double sum = 0, weight = 0;
  for (const json& line : metrics.lines) {
    const std::int64_t step = line["step"];
    if (const auto loss = line.find("loss"); loss != line.end() && loss->is_number()) {
      sum = keep * sum + loss->get<double>(), weight = keep * weight + 1;
      training += fmt::format("{} {:.6g} {:.6g}\n", step, loss->get<double>(), sum / weight);
    }
    if (const auto loss = line.find("validation_loss"); loss != line.end() && loss->is_number())
      validation += fmt::format("{} {:.6g}\n", step, loss->get<double>());
  }
  curves.training = !training.empty(), curves.validation = !validation.empty();
  // A block must not be empty, or the next would take its number.
  curves.data = fmt::format("# {}: step, loss, smoothed\n{}\n\n# step, validation loss\n{}\n\n", one_line(curves.title),
                            curves.training ? training : "NaN NaN NaN\n", curves.validation ? validation : "NaN NaN\n");
  return curves;
}

std::string curves_word(const std::vector<Curves>& runs, const std::string& name) {
  const std::string data = gnuplot_file(name + ".dat");
  std::string plots;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const std::string title = runs.size() > 1 ? runs[r].title + ", " : "", colour = kColours[r % kColours.size()];
    const std::string validation_colour = runs.size() > 1 ? colour : kColours[1];
    const auto add = [&](const std::string& curve) { plots += (plots.empty() ? "plot " : ", \\\n     ") + data + curve; };
    if (runs[r].training) {
      if (runs.size() == 1)
        add(fmt::format(" index {} using 1:2 with lines lw 1 lc rgb '#90c4e4' title 'training, each step'", 2 * r));
      add(fmt::format(" index {} using 1:3 with lines lw 2 lc rgb '{}' title {}", 2 * r, colour,
                      gnuplot_word(title + "training, smoothed")));
    }
    if (runs[r].validation)
      add(fmt::format(" index {} using 1:2 with linespoints lw 2 pt 7 ps 0.8 dt 2 lc rgb '{}' title {}", 2 * r + 1,
                      validation_colour, gnuplot_word(title + "validation")));
  }
  return plots + "\n";
}

constexpr const char* kLook =
    "set xlabel 'step'\nset ylabel 'loss (nats per token)'\nset grid lt 1 lc rgb '#dddddd'\nset key top right noenhanced\n"
    "set border 3\nset tics nomirror\n";

}  // namespace

bool plot_runs(const std::vector<fs::path>& runs, const fs::path& name) {
  std::vector<Curves> curves;
  std::string data;
  for (const fs::path& run : runs) {
    curves.push_back(curves_of(run));
    data += curves.back().data;
    if (!curves.back().training && !curves.back().validation)
      fail(ErrorKind::io, "plot: no losses yet", (run / "metrics.jsonl").string(), "train for some steps first");
  }
  return draw({.data = data, .look = kLook, .plots = curves_word(curves, name.filename().string())}, name);
}

}  // namespace weft
