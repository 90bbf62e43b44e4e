#include "tools/train/plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"
#include "tools/system/process.h"
#include "tools/train/metrics.h"

namespace weft {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Okabe and Ito's colours, which colour-blind readers can tell apart.
constexpr std::array kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"};

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

// In gnuplot's single quotes nothing is replaced, and they know one escape.
std::string quoted(const std::string& text) {
  std::string out = "'";
  for (const char c : one_line(text)) out += c == '\'' ? "''" : std::string(1, c);
  return out + "'";
}

// A file beside the script. With ./ in front it is none of gnuplot's special names: "|command", "<command", "-", "+".
std::string file_word(const std::string& name) { return quoted("./" + name); }

std::string curves_word(const std::vector<Curves>& runs, const std::string& name) {
  const std::string data = file_word(name + ".dat");
  std::string plots;
  for (std::size_t r = 0; r < runs.size(); ++r) {
    const std::string title = runs.size() > 1 ? runs[r].title + ", " : "", colour = kColours[r % kColours.size()];
    const std::string validation_colour = runs.size() > 1 ? colour : kColours[1];
    const auto add = [&](const std::string& curve) { plots += (plots.empty() ? "plot " : ", \\\n     ") + data + curve; };
    if (runs[r].training) {
      if (runs.size() == 1)
        add(fmt::format(" index {} using 1:2 with lines lw 1 lc rgb '#90c4e4' title 'training, each step'", 2 * r));
      add(fmt::format(" index {} using 1:3 with lines lw 2 lc rgb '{}' title {}", 2 * r, colour,
                      quoted(title + "training, smoothed")));
    }
    if (runs[r].validation)
      add(fmt::format(" index {} using 1:2 with linespoints lw 2 pt 7 ps 0.8 dt 2 lc rgb '{}' title {}", 2 * r + 1,
                      validation_colour, quoted(title + "validation")));
  }
  return plots + "\n";
}

struct Picture {
  const char *ending, *terminal;
};
constexpr Picture kPictures[] = {{".png", "set terminal pngcairo noenhanced size 1000,640 font 'sans,11'\n"},
                                 {".svg", "set terminal svg noenhanced size 1000,640 font 'sans,14' background '#ffffff'\n"}};
constexpr const char* kLook =
    "set xlabel 'step'\nset ylabel 'loss (nats per token)'\nset grid lt 1 lc rgb '#dddddd'\nset key top right noenhanced\n"
    "set border 3\nset tics nomirror\n";

// For people: it draws both pictures.
std::string script_of(const std::string& curves, const std::string& name) {
  std::string script = fmt::format("# gnuplot {}.gp\n{}", printable(name), kLook);
  for (const Picture& picture : kPictures)
    script += fmt::format("{}set output {}\n{}", picture.terminal, file_word(name + picture.ending), curves);
  return script;
}

// Gnuplot writes into a pipe, and what it drew is then written as every file is: whole or not at all, and over no link.
void draw_pictures(const fs::path& gnuplot, const fs::path& folder, const std::string& curves, const std::string& name) {
  for (const Picture& picture : kPictures) {
    const auto drawn = output_of({.program = gnuplot,
                                  .arguments = {"-d", "-"},  // no settings of the user's, nor of the folder
                                  .input = std::string(kLook) + picture.terminal + curves,
                                  .folder = folder});
    if (!drawn || drawn->empty())
      fail(ErrorKind::io, "plot: gnuplot failed, or took more than a minute", (folder / (name + ".gp")).string(),
           "run gnuplot on that script to see why");
    write_file(folder / (name + picture.ending), std::as_bytes(std::span(*drawn)));
  }
}

}  // namespace

bool plot_runs(const std::vector<fs::path>& runs, const fs::path& name) {
  const std::string base = name.filename().string();
  if (base.empty() || printable(base) != base || base.find('\n') != base.npos)
    fail(ErrorKind::usage, "plot: the name of a picture needs letters, and no control characters", "'" + name.string() + "'",
         "give another --out");
  std::vector<Curves> curves;
  std::string data;
  for (const fs::path& run : runs) {
    curves.push_back(curves_of(run));
    data += curves.back().data;
    if (!curves.back().training && !curves.back().validation)
      fail(ErrorKind::io, "plot: no losses yet", (run / "metrics.jsonl").string(), "train for some steps first");
  }
  const fs::path folder = fs::absolute(name).parent_path();
  const std::string words = curves_word(curves, base), script = script_of(words, base);
  write_file(folder / (base + ".dat"), std::as_bytes(std::span(data)));
  write_file(folder / (base + ".gp"), std::as_bytes(std::span(script)));
  const auto gnuplot = find_program("gnuplot");
  if (gnuplot) draw_pictures(*gnuplot, folder, words, base);
  return gnuplot.has_value();
}

}  // namespace weft
