#include "autograd/settings.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <string>
#include <vector>

#include "jit/compiler.h"
#include "jit/error.h"
#include "jit/expr.h"
#include "jit/gemm_cuda.h"
#include "jit/memory.h"

namespace weft {
namespace {

// Calls f(word) for each word of the comma-separated variable; f returns false for a word it does not know.
template <class F>
void each_word(const char* variable, const std::vector<std::string>& known, F&& f) {
  const char* text = std::getenv(variable);
  if (!text) return;
  std::string_view rest(text);
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    const std::string word(rest.substr(0, comma));
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
    if (word.empty() || f(word)) continue;
    fail_unknown(std::string(variable) + ": unknown word", word, known);
  }
}

}  // namespace

Settings read_settings() {
  Settings s;
  each_word("WEFT_FUSE", {"0", "1"}, [&](const std::string& w) {
    s.fuse = w != "0";
    return w == "0" || w == "1";
  });
  contraction() = true;
  each_word("WEFT_PRODUCTS", {"sums", "all", "none"}, [&](const std::string& w) {
    s.products = w == "all" ? Products::all : w == "none" ? Products::none : Products::sums;
    return w == "sums" || w == "all" || w == "none";
  });
  each_word("WEFT_FMA", {"0", "1"}, [](const std::string& w) {
    contraction() = w != "0";
    return w == "0" || w == "1";
  });
  each_word("WEFT_DEVICE", {"cpu", "cuda", "emu"}, [&](const std::string& w) {
    s.device = w == "cuda" ? Device::cuda : w == "emu" ? Device::emu : Device::cpu;
    return w == "cpu" || w == "cuda" || w == "emu";
  });
  each_word("WEFT_OVERLAP", {"0", "1"}, [&](const std::string& w) {
    s.overlap = w != "0";
    return w == "0" || w == "1";
  });
  each_word("WEFT_FOLLOW", {"0", "1"}, [&](const std::string& w) {
    s.follow = w != "0";
    return w == "0" || w == "1";
  });
  each_word("WEFT_GRAPH", {"0", "1"}, [&](const std::string& w) {
    s.graph = w != "0";
    return w == "0" || w == "1";
  });
  each_word("WEFT_TARGET", {"sm_80", "sm_90a"}, [&](const std::string& w) {
    s.kernels = Target{Device::cuda, w == "sm_90a" ? 90 : 80, w == "sm_90a"};
    return w == "sm_80" || w == "sm_90a";
  });
  each_word("WEFT_ARENA", {"shared", "split"}, [&](const std::string& w) {
    s.split_arena = w == "split";
    return w == "split" || w == "shared";
  });
  split_memory() = s.split_arena;
  tune_gemms(false);
  each_word("WEFT_TUNE", {"0", "1"}, [&](const std::string& w) {
    tune_gemms(w == "1");
    return w == "0" || w == "1";
  });
  each_word("WEFT_PLANS", {"256"}, [&](const std::string& w) {
    std::size_t megabytes = 0;
    const auto [end, error] = std::from_chars(w.data(), w.data() + w.size(), megabytes);
    s.plan_bytes = std::min(megabytes, std::size_t(1) << 40) << 20;
    return error == std::errc() && end == w.data() + w.size();
  });
  each_word("WEFT_CHECK", {"nan"}, [&](const std::string& w) { return s.check_nan = w == "nan"; });
  CompilerLog& compiler = compiler_log() = {};
  each_word("WEFT_LOG", {"plan", "why", "kernels", "cache", "source"}, [&](const std::string& w) {
    s.log_plan |= w == "plan";
    s.log_why |= w == "why";
    s.log_kernels |= w == "kernels";
    compiler.cache |= w == "cache";
    compiler.source |= w == "source";
    return w == "plan" || w == "why" || w == "kernels" || w == "cache" || w == "source";
  });
  return s;
}

Settings& settings() {
  static Settings s = read_settings();
  return s;
}

bool on_main_thread() {
  thread_local const bool main = ::gettid() == ::getpid();
  return main;
}

}  // namespace weft
