#include "jit/compiler.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <tuple>

#include "jit/cache.h"
#include "jit/cubin.h"
#include "jit/driver.h"
#include "jit/error.h"
#include "jit/file.h"
#include "jit/parallel.h"
#include "jit/print.h"

namespace weft {

namespace {

// What the result depends on. Line numbers change no instruction, and let profilers show the text.
std::vector<std::string> options_of(std::string_view target) {
  return {fmt::format("--gpu-architecture={}", target), "--std=c++17", "-lineinfo", "--ptxas-options=-v"};
}

// What only costs or saves time, by the version that has it. Without the first, a compilation changes the stack limit
// of the process; without --no-cache, the driver's cache would hide what a compilation costs.
std::vector<std::string> fast_options(int version) {
  std::vector<std::string> options = {"-modify-stack-limit=false"};
  if (version >= 12040) options.emplace_back("--minimal");
  if (version >= 13000) options.emplace_back("--no-cache");
  return options;
}

std::string key_of(const CompileJob& job) {
  return cache_key(fmt::format("{}\n{}\n{}", job.name, fmt::join(options_of(job.target), "\n"), job.source));
}

// ---- logs -------------------------------------------------------------------------------------------------------------------

// The largest number that stands before `words` in a line of the log: "Used 24 registers".
int resource(std::string_view log, std::string_view words) {
  int largest = 0;
  for (std::size_t at = log.find(words); at != std::string_view::npos; at = log.find(words, at + 1)) {
    std::size_t end = at, begin = at;
    while (begin > 0 && log[begin - 1] >= '0' && log[begin - 1] <= '9') --begin;
    int value = 0;
    std::from_chars(log.data() + begin, log.data() + end, value);
    largest = std::max(largest, value);
  }
  return largest;
}

void read_resources(Compiled& compiled) {
  compiled.registers = resource(compiled.log, " registers");
  compiled.spill_bytes = resource(compiled.log, " bytes spill stores");
  compiled.stack_bytes = resource(compiled.log, " bytes stack frame");
  compiled.shared_bytes = resource(compiled.log, " bytes smem");
  // The log does not tell.
  compiled.constant_bytes = compiled.cubin.empty() ? 0 : int(largest_section(compiled.cubin, ".nv.constant0"));
}

// Empty lines and times would make equal compilations differ.
std::string tidy(std::string_view log) {
  std::string kept;
  for (std::string_view line : lines_of(log.substr(0, log.find('\0'))))
    if (!line.empty() && line.find("Compile time") == std::string_view::npos) kept.append(line).append("\n");
  return kept;
}

// The lines of the text around the first "FILE(LINE): error" of the log, numbered. A `#line 1 "FILE"` in the text begins a
// file of its own: what a user wrote.
std::string excerpt(std::string_view log, std::string_view source) {
  const std::size_t close = log.find("): error");
  const std::size_t open = close == std::string_view::npos ? close : log.rfind('(', close);
  int line = 0;
  if (open == std::string_view::npos) return "";
  std::from_chars(log.data() + open + 1, log.data() + close, line);
  const std::size_t begin = log.rfind('\n', open) + 1;  // npos + 1 is 0
  const std::string marker = fmt::format("#line 1 \"{}\"\n", log.substr(begin, open - begin));
  if (const std::size_t at = source.find(marker); at != std::string_view::npos) source.remove_prefix(at + marker.size());
  const std::vector<std::string_view> lines = lines_of(source);
  std::string text;
  for (int i = std::max(1, line - 4); i <= std::min(line + 4, int(lines.size())); ++i)
    text += fmt::format("{} {:5}  {}\n", i == line ? '>' : ' ', i, lines[std::size_t(i - 1)]);
  return text;
}

// ---- NVRTC ------------------------------------------------------------------------------------------------------------------

void require(cu::nvrtcResult result, const char* call) {
  if (result != cu::NVRTC_SUCCESS) fail(ErrorKind::device, std::string(call) + " failed", nvrtc().nvrtcGetErrorString(result));
}

class NvrtcProgram {
 public:
  explicit NvrtcProgram(const CompileJob& job) {
    require(nvrtc().nvrtcCreateProgram(&program_, job.source.c_str(), (job.name + ".cu").c_str(), 0, nullptr, nullptr),
            "nvrtcCreateProgram");
  }
  ~NvrtcProgram() { nvrtc().nvrtcDestroyProgram(&program_); }
  NvrtcProgram(const NvrtcProgram&) = delete;
  NvrtcProgram& operator=(const NvrtcProgram&) = delete;

  cu::nvrtcResult compile(const std::vector<std::string>& options) {
    std::vector<const char*> words;
    for (const std::string& option : options) words.push_back(option.c_str());
    return nvrtc().nvrtcCompileProgram(program_, int(words.size()), words.data());
  }
  std::string cubin() const { return read(nvrtc().nvrtcGetCUBINSize, nvrtc().nvrtcGetCUBIN, "nvrtcGetCUBIN"); }
  std::string log() const { return read(nvrtc().nvrtcGetProgramLogSize, nvrtc().nvrtcGetProgramLog, "nvrtcGetProgramLog"); }
  std::string ptx() const {
    std::string text = read(nvrtc().nvrtcGetPTXSize, nvrtc().nvrtcGetPTX, "nvrtcGetPTX");
    return text.substr(0, text.find('\0'));
  }

 private:
  template <class Size, class Get>
  std::string read(Size size, Get get, const char* call) const {
    std::size_t bytes = 0;
    require(size(program_, &bytes), call);
    std::string text(bytes, '\0');
    require(get(program_, text.data()), call);
    return text;
  }
  cu::nvrtcProgram program_ = nullptr;
};

bool makes_ptx(std::string_view target) { return target.starts_with("compute_"); }

Compiled compile_now(const CompileJob& job) {
  if (compiler_log().source) print_error("---- {} for {}\n{}\n", job.name, job.target, job.source);
  std::vector<std::string> options = options_of(job.target);
  for (std::string& option : fast_options(nvrtc_version())) options.push_back(std::move(option));
  const auto begin = std::chrono::steady_clock::now();
  NvrtcProgram program(job);
  const cu::nvrtcResult result = program.compile(options);
  Compiled compiled;
  compiled.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  compiled.log = tidy(program.log());
  if (result != cu::NVRTC_SUCCESS)
    fail(ErrorKind::device, fmt::format("kernel {} does not compile for {}", job.name, job.target),
         fmt::format("{}\n{}{}", nvrtc().nvrtcGetErrorString(result), compiled.log, excerpt(compiled.log, job.source)));
  if (!makes_ptx(job.target)) compiled.cubin = program.cubin();
  if (makes_ptx(job.target) || job.want_ptx) compiled.ptx = program.ptx();
  read_resources(compiled);
  return compiled;
}

// ---- the cache before it ----------------------------------------------------------------------------------------------------

std::optional<Compiled> load(const CompileJob& job) {
  std::optional<Compiled> compiled = cache_load(key_of(job), nvrtc_version());
  if (compiled && job.want_ptx && compiled->ptx.empty()) compiled.reset();
  if (compiler_log().cache) print_error("cache {}  {} for {}\n", compiled ? "hit " : "miss", job.name, job.target);
  return compiled;
}

Compiled compile_and_store(const CompileJob& job) {
  Compiled compiled = compile_now(job);
  cache_store(key_of(job), compiled, nvrtc_version(), job.source);
  if (compiler_log().cache) print_error("compiled    {} for {} in {:.0f} ms\n", job.name, job.target, 1e3 * compiled.seconds);
  return compiled;
}

}  // namespace

CompilerLog& compiler_log() {
  static CompilerLog log;
  return log;
}

int nvrtc_version() {
  static const int version = [] {
    int major = 0, minor = 0;
    if (missing_library(CudaLibrary::nvrtc) || nvrtc().nvrtcVersion(&major, &minor) != cu::NVRTC_SUCCESS) return 0;
    return 1000 * major + 10 * minor;
  }();
  return version;
}

Compiled compile(std::string_view name, const std::string& source, std::string_view target, bool want_ptx) {
  const CompileJob job{std::string(name), source, std::string(target), want_ptx};
  return std::move(compile_all({&job, 1})[0]);
}

std::vector<Compiled> compile_all(std::span<const CompileJob> jobs, const std::function<void(int, int)>& progress) {
  // first[j]: the job that job j is equal to, itself if it is the first of them.
  std::vector<std::size_t> first(jobs.size()), cold;
  std::map<std::tuple<std::string_view, std::string_view, std::string_view, bool>, std::size_t> known;
  std::vector<Compiled> compiled(jobs.size());
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    first[j] = known.try_emplace({jobs[j].name, jobs[j].source, jobs[j].target, jobs[j].want_ptx}, j).first->second;
    if (first[j] != j) continue;
    if (std::optional<Compiled> entry = load(jobs[j]))
      compiled[j] = std::move(*entry);
    else
      cold.push_back(j);
  }

  // The longest texts first, so that no thread is left with one at the end.
  std::stable_sort(cold.begin(), cold.end(),
                   [&](std::size_t a, std::size_t b) { return jobs[a].source.size() > jobs[b].source.size(); });
  std::mutex mutex;
  int done = 0;
  parallel(std::int64_t(cold.size()), [&](std::int64_t i) {
    const std::size_t j = cold[std::size_t(i)];
    compiled[j] = compile_and_store(jobs[j]);
    std::lock_guard lock(mutex);
    ++done;
    if (progress) progress(done, int(cold.size()));
  });
  for (std::size_t j = 0; j < jobs.size(); ++j)
    if (first[j] != j) compiled[j] = compiled[first[j]];
  return compiled;
}

std::string target_among(int major, int minor, std::span<const int> supported) {
  const int arch = 10 * major + minor;
  if (arch < 80)
    fail(ErrorKind::device, fmt::format("compute capability {}.{} is too old", major, minor), {}, "weft needs 8.0 or later");
  if (std::find(supported.begin(), supported.end(), arch) != supported.end())
    return fmt::format("sm_{}{}", arch, arch >= 90 ? "a" : "");
  int near = 0, newest = 0;  // of the same major version, of all, up to the device's
  for (int s : supported) {
    if (s <= arch) newest = std::max(newest, s);
    if (s <= arch && s / 10 == major) near = std::max(near, s);
  }
  if (near != 0) return fmt::format("sm_{}", near);
  if (newest == 0)
    fail(ErrorKind::device, fmt::format("NVRTC has no architecture up to {}.{}", major, minor),
         fmt::format("it has {}", fmt::join(supported, ", ")));
  return fmt::format("compute_{}", newest);
}

std::string target_of(int major, int minor) {
  if (nvrtc_version() == 0) return target_among(major, minor, std::vector<int>{10 * major + minor});
  int count = 0;
  require(nvrtc().nvrtcGetNumSupportedArchs(&count), "nvrtcGetNumSupportedArchs");
  std::vector<int> supported(std::size_t(count), 0);
  require(nvrtc().nvrtcGetSupportedArchs(supported.data()), "nvrtcGetSupportedArchs");
  const std::string target = target_among(major, minor, supported);
  static std::once_flag said;
  if (target.find(std::to_string(10 * major + minor)) == std::string::npos)
    std::call_once(said, [&] {
      print_error("weft: NVRTC {}.{} is older than the device ({}.{}): kernels are compiled for {}; {}\n",
                  nvrtc_version() / 1000, nvrtc_version() % 1000 / 10, major, minor, target, install_line(CudaLibrary::nvrtc));
    });
  return target;
}

}  // namespace weft
