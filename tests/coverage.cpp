#include "tests/coverage.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

namespace weft {
namespace {

constexpr double kLeast = 0.95;

std::vector<std::string> split(const std::string& line, char by) {
  std::vector<std::string> parts;
  std::istringstream in(line);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

std::string trimmed(const std::string& s) {
  const auto begin = s.find_first_not_of(' ');
  return begin == std::string::npos ? "" : s.substr(begin, s.find_last_not_of(' ') - begin + 1);
}

// scan of scan__sum__3f9c1a
std::string kernel_of(const std::string& text) { return text.substr(0, text.find("__")); }

bool tells_apart(const std::string& opcode) {
  constexpr std::array kWords{"ld",  "st",      "atom",   "red",   "cp",   "ldmatrix", "stmatrix", "mma",
                              "bar", "barrier", "membar", "fence", "shfl", "vote",     "match",    "redux",
                              "bra", "brx",     "call",   "ret",   "exit", "trap"};
  const std::string word = opcode.substr(0, opcode.find('.'));
  return !opcode.starts_with("ld.param") && opcode != "bra.uni" &&
         std::find(kWords.begin(), kWords.end(), word) != kWords.end();
}

// What blocks that are alike have in common.
std::string likeness(const std::string& opcodes) {
  std::vector<std::string> once;
  for (std::string opcode : split(opcodes, ' ')) {
    if (!tells_apart(opcode)) continue;
    if (const auto at = opcode.find("f64"); at != std::string::npos) opcode.replace(at, 3, "f32");
    if (std::find(once.begin(), once.end(), opcode) == once.end()) once.push_back(opcode);
  }
  return fmt::format("{}", fmt::join(once, " "));
}

struct Block {
  bool run = false;
  std::string text, opcodes;  // where it was met first
  int line = 0;
};

}  // namespace

CoverageReport coverage_report(const std::vector<std::string>& lines, const std::vector<CoverageException>& exceptions) {
  std::map<std::pair<std::string, std::string>, Block> blocks;  // by kernel and likeness
  std::map<std::string, std::map<int, bool>> texts;             // by line: whether the block has run
  for (const std::string& line : lines) {
    const std::vector<std::string> parts = split(line, '\t');
    if (parts.size() != 4) continue;  // an empty block
    const bool run = parts[2] == "1";
    Block& block =
        blocks.try_emplace({kernel_of(parts[0]), likeness(parts[3])}, Block{false, parts[0], parts[3], std::stoi(parts[1])})
            .first->second;
    block.run |= run;
    texts[parts[0]][std::stoi(parts[1])] |= run;
  }
  CoverageReport report;
  for (const auto& [text, lines_run] : texts) {
    KernelCoverage& k = report.kernels[kernel_of(text)];
    const auto run = int(std::count_if(lines_run.begin(), lines_run.end(), [](const auto& line) { return line.second; }));
    ++k.texts, k.all += int(lines_run.size()), k.all_run += run;
    if (run == 0) report.never.push_back(text);
  }
  for (const CoverageException& e : exceptions) report.excepted[e.reason] = 0;
  for (const auto& [key, block] : blocks) {
    const std::string& kernel = key.first;
    KernelCoverage& k = report.kernels[kernel];
    ++k.blocks;
    if (block.run) {
      ++k.run;
      continue;
    }
    const std::string& opcodes = block.opcodes;
    const auto excepted = std::find_if(exceptions.begin(), exceptions.end(), [&](const CoverageException& e) {
      return (e.kernel.empty() || e.kernel == kernel) && opcodes.find(e.opcodes) != std::string::npos;
    });
    if (excepted == exceptions.end())
      k.missing.push_back({block.text, opcodes, block.line});
    else
      ++k.excepted, ++report.excepted[excepted->reason];
  }
  return report;
}

std::vector<CoverageException> coverage_exceptions(const std::string& text) {
  std::vector<CoverageException> exceptions;
  for (const std::string& line : split(text, '\n')) {
    if (line.empty() || line[0] == '#') continue;
    const std::vector<std::string> parts = split(line, '|');
    const std::string kernel = trimmed(parts.at(0));
    exceptions.push_back({kernel == "*" ? "" : kernel, trimmed(parts.at(1)), trimmed(parts.at(2))});
  }
  return exceptions;
}

bool passes(const CoverageReport& report, double least) {
  const auto enough = [&](const auto& k) { return k.second.share() >= least; };
  return !report.kernels.empty() && report.never.empty() && std::all_of(report.kernels.begin(), report.kernels.end(), enough);
}

std::string to_text(const CoverageReport& report, double least) {
  std::string out = fmt::format("{:24} {:>6} {:>7} {:>6} {:>9}\n", "kernel", "texts", "blocks", "run", "excepted");
  int texts = 0, all = 0, all_run = 0;
  for (const auto& [name, k] : report.kernels) {
    texts += k.texts, all += k.all, all_run += k.all_run;
    out += fmt::format("{:24} {:6} {:7} {:6} {:9} {:6.1f} %{}\n", name, k.texts, k.blocks, k.run, k.excepted, 100 * k.share(),
                       k.share() < least ? fmt::format("  less than {:.0f} %", 100 * least) : "");
  }
  out += fmt::format("{} texts; of all {} blocks of each for itself {:.1f} % have run\n", texts, all,
                     100. * all_run / std::max(all, 1));
  out += "\nblocks that have not run:\n";
  for (const auto& [name, k] : report.kernels)
    for (const KernelCoverage::Missing& m : k.missing)
      out += fmt::format("  {}, PTX line {}: {}\n", m.text, m.line,
                         m.opcodes.size() > 200 ? m.opcodes.substr(0, 200) + " ..." : m.opcodes);
  out += "\nexcepted:\n";
  for (const auto& [reason, count] : report.excepted) out += fmt::format("  {:6}  {}\n", count, reason);
  for (const std::string& text : report.never) out += fmt::format("never run: {}\n", text);
  return out;
}

int report_coverage(const std::string& folder) {
  std::vector<std::string> lines;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream file(entry.path());
    for (std::string line; std::getline(file, line);) lines.push_back(line);
  }
  std::ostringstream exceptions;
  exceptions << std::ifstream(WEFT_SOURCE_DIR "/tests/coverage_exceptions.txt").rdbuf();
  const CoverageReport report = coverage_report(lines, coverage_exceptions(exceptions.str()));
  fmt::print("{}", to_text(report, kLeast));
  return passes(report, kLeast) ? 0 : 1;
}

}  // namespace weft
