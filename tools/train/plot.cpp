#include "tools/train/plot.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "jit/error.h"
#include "jit/file.h"
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
  curves.data = fmt::format("# {}: step, loss, smoothed\n{}\n\n# step, validation loss\n{}\n\n", curves.title,
                            curves.training ? training : "NaN NaN NaN\n", curves.validation ? validation : "NaN NaN\n");
  return curves;
}

std::string quoted(const std::string& text) {  // gnuplot's single quotes know one escape
  std::string out = "'";
  for (const char c : text) out += c == '\'' ? "''" : c == '\n' ? " " : std::string(1, c);
  return out + "'";
}

std::string script_of(const std::vector<Curves>& runs, const std::string& name) {
  const std::string data = quoted(name + ".dat");
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
  return fmt::format(
      "# gnuplot {0}.gp\n"
      "set xlabel 'step'\nset ylabel 'loss (nats per token)'\nset grid lt 1 lc rgb '#dddddd'\nset key top right noenhanced\n"
      "set border 3\nset tics nomirror\n"
      "set terminal pngcairo noenhanced size 1000,640 font 'sans,11'\nset output {1}\n{3}\n"
      "set terminal svg noenhanced size 1000,640 font 'sans,14' background '#ffffff'\nset output {2}\nreplot\n",
      name, quoted(name + ".png"), quoted(name + ".svg"), plots);
}

// In `folder`, whose names the script uses. False: not installed.
bool run_gnuplot(const fs::path& folder, const std::string& script) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addchdir_np(&actions, folder.c_str());
  std::string program = "gnuplot", argument = script;
  char* const words[] = {program.data(), argument.data(), nullptr};
  pid_t child = 0;
  const int error = posix_spawnp(&child, "gnuplot", &actions, nullptr, words, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error == ENOENT) return false;
  if (error != 0) fail(ErrorKind::io, "plot: gnuplot cannot be started", std::strerror(error));
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0)
    fail(ErrorKind::io, "plot: gnuplot failed", (folder / script).string(), "run gnuplot on that script to see why");
  return true;
}

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
  const fs::path folder = fs::absolute(name).parent_path();
  const std::string base = name.filename().string(), script = script_of(curves, base);
  write_file(folder / (base + ".dat"), std::as_bytes(std::span(data)));
  write_file(folder / (base + ".gp"), std::as_bytes(std::span(script)));
  return run_gnuplot(folder, base + ".gp");
}

}  // namespace weft
