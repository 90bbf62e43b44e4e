// Kernel texts to machine code: NVRTC behind a disk cache (jit/cache.h).
//
// A target is an architecture's machine code, "sm_90a", or its PTX alone, "compute_90", which the driver (or the
// emulated device) finishes.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

struct CompileJob {
  std::string name;    // for messages, and the file name that profilers show
  std::string source;  // complete
  std::string target;
  bool want_ptx = false;  // the PTX too
};

struct Compiled {
  std::string cubin;  // "" if the target is PTX
  std::string ptx;    // "" unless wanted, or the target
  std::string log;    // NVRTC's and the assembler's
  // Of the kernel (of several in one text: the largest). 0 if the target is PTX.
  int registers = 0;       // a thread
  int spill_bytes = 0;     // a thread, stored
  int stack_bytes = 0;     // a thread
  int shared_bytes = 0;    // a block, static
  int constant_bytes = 0;  // parameters and constants
  double seconds = 0;      // that the compilation took, now or when the entry of the cache was made
  bool cached = false;
};

// The oldest version of NVRTC that the options and texts of weft are tested with, major * 1000 + minor * 10.
constexpr int kOldestNvrtc = 12000;

// An Error (device) if there is neither an entry of the cache nor NVRTC, or if the text has a mistake: then it names
// the kernel and shows NVRTC's log and the lines around the first mistake.
Compiled compile(std::string_view name, const std::string& source, std::string_view target, bool want_ptx = false);

// All jobs, equal ones once, those that are not in the cache on all threads. `progress(done, of)` is called after each
// compilation, by one thread at a time.
std::vector<Compiled> compile_all(std::span<const CompileJob> jobs, const std::function<void(int, int)>& progress = {});

// The target for a device of compute capability major.minor, at least 8.0: exact where NVRTC knows it (sm_90a: `a` has
// the instructions that later devices lack); else the newest of the same major version, or PTX of the newest
// architecture, which is said on stderr once. Exact if there is no NVRTC, since the cache may have it.
std::string target_of(int major, int minor);
// The same among the architectures 10 * major + minor that a compiler supports.
std::string target_among(int major, int minor, std::span<const int> supported);

// NVRTC's version, major * 1000 + minor * 10 as the driver counts; 0 if it is missing.
int nvrtc_version();

// What is printed on stderr: hits and misses of the cache, and each text that is compiled (WEFT_LOG=cache,source).
struct CompilerLog {
  bool cache = false, source = false;
};
CompilerLog& compiler_log();

}  // namespace weft
