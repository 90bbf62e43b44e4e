#include "tools/cli/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>

#include "autograd/run.h"
#include "jit/gpu.h"
#include "jit/print.h"

namespace weft {
namespace {

constexpr std::int64_t kPlainLines = 20;  // at most about so many in a run
constexpr std::chrono::milliseconds kRedraw(100);
constexpr std::int64_t kWarmSteps = 2;  // planning; not counted in tokens/s

bool wants_colour(bool terminal) {
  const char* no = std::getenv("NO_COLOR");  // no-color.org: set and not empty
  const char* term = std::getenv("TERM");
  return terminal && !(no && *no) && !(term && std::string(term) == "dumb");
}

}  // namespace

StatusLine::StatusLine() : terminal_(isatty(STDOUT_FILENO)), colour_(wants_colour(terminal_)) {}

void StatusLine::show(const std::string& line, bool always, bool last) {
  if (terminal_) {
    const auto now = std::chrono::steady_clock::now();
    if (!always && now - drawn_ < kRedraw) return;
    drawn_ = now;
    put_out("\r" + line + "\x1b[K");
    open_ = true;
    if (last) wipe();
  } else if (always) {
    put_out(line + "\n");
  }
  std::fflush(stdout);
}

void StatusLine::wipe() {
  if (open_) put_out("\n");
  open_ = false;
}

void StatusLine::note(const std::string& text) {
  wipe();
  put_out(printable(text) + "\n");
  std::fflush(stdout);
}

Progress::Progress(std::int64_t first, std::int64_t total, std::int64_t tokens_per_step)
    : first_(first),
      total_(total),
      tokens_per_step_(tokens_per_step),
      every_(std::max<std::int64_t>(1, (total - first + kPlainLines - 1) / kPlainLines)),
      mark_(Clock::now()) {}

void Progress::step(std::int64_t step, double loss, double lr) {
  const double took = std::chrono::duration<double>(Clock::now() - mark_).count();
  mark_ = Clock::now();
  seconds_ += took, last_seconds_ = took, ++steps_;
  if (steps_ > kWarmSteps) counted_seconds_ += took, ++counted_;
  if (std::isfinite(loss)) loss_sum_ += loss, ++losses_;
  const bool last = step == total_, plain = (step - first_) % every_ == 0 || last || step == first_ + 1;
  line_.show(line(step, lr), plain, last);
  if (plain) loss_sum_ = 0, losses_ = 0;
}

std::string Progress::line(std::int64_t step, double lr) const {
  const double left = steps_ ? seconds_ / double(steps_) * double(total_ - step) : 0;
  const std::string loss = losses_ ? fmt::format("loss {:.4f}", loss_sum_ / double(losses_)) : "loss nan";
  return fmt::format("step {:>{}}/{}  {}  lr {:.2e}  {:.0f} tokens/s  {:.0f} MB  {} left", step, std::to_string(total_).size(),
                     total_, line_.colour() ? "\x1b[1m" + loss + "\x1b[0m" : loss, lr, tokens_per_second(),
                     double(peak_memory()) / 1e6, format_duration(left));
}

double Progress::tokens_per_second() const {
  const bool warm = counted_ > 0;
  const double seconds = warm ? counted_seconds_ : seconds_;
  return seconds > 0 ? double((warm ? counted_ : steps_) * tokens_per_step_) / seconds : 0;
}

double Progress::last_tokens_per_second() const { return last_seconds_ > 0 ? double(tokens_per_step_) / last_seconds_ : 0; }

void Progress::note(const std::string& text) {
  line_.note(text);
  mark_ = Clock::now();
}

void Progress::pause() { mark_ = Clock::now(); }

std::size_t peak_host_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;)
    if (std::size_t kilobytes = 0; word == "VmHWM:" && status >> kilobytes) return kilobytes * 1024;
  return 0;
}

std::size_t peak_memory() { return is_gpu(device()) ? Gpu::of(device()).peak_memory() : peak_host_memory(); }

std::string format_duration(double seconds) {
  const auto s = std::int64_t(std::min(seconds + 0.5, 1e15));
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60) : fmt::format("{}:{:02}", s / 60, s % 60);
}

}  // namespace weft
