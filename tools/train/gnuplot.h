// Pictures that gnuplot draws, kept with their data and script so that they can be drawn again, and otherwise.
#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// Okabe and Ito's colours, which colour-blind readers can tell apart.
inline constexpr std::array kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"};

struct Picture {
  std::string data;  // of NAME.dat: gnuplot's blocks, two empty lines between them
  std::string look;  // settings before the terminal is set
  std::string plots;
  int width = 1000, height = 640;                       // pixels
  std::vector<std::string> endings = {".png", ".svg"};  // which of these are drawn
};

// A word of gnuplot's language that stands for the text, on one line.
std::string gnuplot_word(std::string_view text);
// Likewise, for a file beside the script: none of gnuplot's special names.
std::string gnuplot_file(std::string_view name);

// Writes NAME.dat, NAME.gp and, if gnuplot is installed, what it draws: else false. Errors: ErrorKind::io for a gnuplot that
// fails or takes more than a minute a picture; ErrorKind::usage for a name that gnuplot cannot be told.
bool draw(const Picture& picture, const std::filesystem::path& name);

}  // namespace weft
