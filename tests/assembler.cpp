#include "tests/assembler.h"

#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "jit/compiler.h"
#include "jit/driver.h"
#include "jit/error.h"
#include "tests/temp_folder.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

struct Outcome {
  bool good;
  std::string text;  // stdout and stderr
};
Outcome run_program(const std::string& command) {
  Outcome outcome{false, {}};
  std::FILE* pipe = ::popen((command + " 2>&1 </dev/null").c_str(), "r");
  if (!pipe) return outcome;
  char buffer[4096];
  while (const std::size_t n = std::fread(buffer, 1, sizeof buffer, pipe)) outcome.text.append(buffer, n);
  outcome.good = ::pclose(pipe) == 0;
  return outcome;
}

// In bin/ of a folder above NVRTC's, and of its version; "" if there is none.
const std::string& program() {
  static const std::string path = [] {
    std::error_code error;
    const std::string release = fmt::format("release {}.{},", nvrtc_version() / 1000, nvrtc_version() % 1000 / 10);
    fs::path folder = fs::canonical(library_path(CudaLibrary::nvrtc), error).parent_path();
    for (; folder.has_relative_path(); folder = folder.parent_path()) {
      const std::string file = (folder / "bin" / "ptxas").string();
      if (!fs::exists(file, error)) continue;
      if (run_program(fmt::format("'{}' --version", file)).text.find(release) != std::string::npos) return file;
    }
    return std::string();
  }();
  return path;
}

}  // namespace

bool has_assembler() { return !program().empty(); }

std::string assemble(std::string_view ptx, std::string_view target) {
  const TempFolder folder;
  const fs::path from = folder.write("text.ptx", ptx), to = folder / "text.cubin";
  const Outcome outcome =
      run_program(fmt::format("'{}' -arch={} -v -lineinfo -o '{}' '{}'", program(), target, to.string(), from.string()));
  if (!outcome.good) fail(ErrorKind::device, fmt::format("PTX cannot be assembled for {}", target), outcome.text);
  return outcome.text;
}

}  // namespace weft
