#include "tools/train/gnuplot.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/print.h"
#include "tools/system/process.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::string terminal_of(const Picture& picture, const std::string& ending) {
  const bool svg = ending == ".svg";
  return fmt::format("set terminal {} noenhanced size {},{} font 'sans,{}'{}\n", svg ? "svg" : "pngcairo", picture.width,
                     picture.height, svg ? 14 : 11, svg ? " background '#ffffff'" : "");
}

// For people: it draws all of the endings.
std::string script_of(const Picture& picture, const std::string& name) {
  std::string script = fmt::format("# gnuplot {}.gp\n{}", printable(name), picture.look);
  for (const std::string& ending : picture.endings)
    script += fmt::format("{}set output {}\n{}", terminal_of(picture, ending), gnuplot_file(name + ending), picture.plots);
  return script;
}

}  // namespace

// In gnuplot's single quotes nothing is replaced, and they know one escape.
std::string gnuplot_word(std::string_view text) {
  std::string out = "'";
  for (const char c : printable(text)) out += c == '\'' ? "''" : std::string(1, c == '\n' ? ' ' : c);
  return out + "'";
}

// With ./ in front it is none of the special names: "|command", "<command", "-", "+".
std::string gnuplot_file(std::string_view name) { return gnuplot_word("./" + std::string(name)); }

// Gnuplot writes into a pipe, and what it drew is then written as every file is: whole or not at all, and over no link.
bool draw(const Picture& picture, const fs::path& name) {
  const std::string base = name.filename().string();
  if (base.empty() || printable(base) != base || base.find('\n') != base.npos)
    fail(ErrorKind::usage, "plot: the name of a picture needs letters, and no control characters", "'" + name.string() + "'",
         "give another --out");
  const fs::path folder = fs::absolute(name).parent_path();
  const std::string script = script_of(picture, base);
  write_file(folder / (base + ".dat"), std::as_bytes(std::span(picture.data)));
  write_file(folder / (base + ".gp"), std::as_bytes(std::span(script)));
  const auto gnuplot = find_program("gnuplot");
  if (!gnuplot) return false;
  for (const std::string& ending : picture.endings) {
    const auto drawn = output_of({.program = *gnuplot,
                                  .arguments = {"-d", "-"},  // no settings of the user's, nor of the folder
                                  .input = picture.look + terminal_of(picture, ending) + picture.plots,
                                  .folder = folder});
    if (!drawn || drawn->empty())
      fail(ErrorKind::io, "plot: gnuplot failed, or took more than a minute", (folder / (base + ".gp")).string(),
           "run gnuplot on that script to see why");
    write_file(folder / (base + ending), std::as_bytes(std::span(*drawn)));
  }
  return true;
}

}  // namespace weft
