#include "models/mamba2_block.h"

#include <fmt/format.h>

#include "autograd/run.h"
#include "jit/print.h"
#include "ops/ssd.h"

namespace weft {
namespace {

Mamba2Config config_of(const Mamba2BlockOptions& o, Site where) {
  Mamba2Config c{.vocab = 1, .width = o.width, .layers = 1, .state = o.state, .head = o.head};
  c.groups = o.groups, c.expand = o.expand, c.conv = o.conv, c.dtype = o.dtype;
  if (o.width < 1)
    fail_at(where, "Mamba2Block: it needs a width", fmt::format("width {}", o.width), "Mamba2Block({.width = 192})");
  c.check();
  return c;
}

}  // namespace

Mamba2Block::Mamba2Block(const Mamba2BlockOptions& options, Site where)
    : config_(config_of(options, where)), mixer_(config_), chosen_(options.plain ? ScanPath::plain : ScanPath::fast) {
  add("mixer", mixer_);
  if (options.say) print_error("{}\n", active_path());
}

Mamba2Block::Result Mamba2Block::operator()(Arg x, Mamba2States from) {
  const Shape shape = x.shape();
  if (shape.rank() != 3 || shape[2] != config_.width)
    fail_at(x.where(), "Mamba2Block: x is not (batch, time, width)",
            fmt::format("x {}, width {}", to_string(shape), config_.width), "reshape it");
  CallFrame frame(*this, x.where(), x.tensor());
  Result result{{}, std::move(from)};
  result.output = mixer_.forward(x.tensor(), result.states, path());
  frame.close(result.output);
  return result;
}

ScanPath Mamba2Block::path() const {
  if (chosen_ != ScanPath::fast) return chosen_;
  return ssd_has_kernels(config_.head, config_.state, config_.compute()) ? ScanPath::fast : ScanPath::plain;
}

std::string Mamba2Block::active_path() const {
  const std::string_view on = name_of(device());
  if (path() == ScanPath::fast)
    return fmt::format("Mamba2Block: fast path, the kernels of ssd on {} (.plain = true forces the plain one)", on);
  if (path() == ScanPath::sequential) return fmt::format("Mamba2Block: a loop over the steps on {}", on);
  const std::string why = chosen_ == ScanPath::plain ? "as asked for"
                                                     : fmt::format("ssd has no kernels for heads of {} with {} states in {}",
                                                                   config_.head, config_.state, name_of(config_.compute()));
  return fmt::format("Mamba2Block: plain path, ssd made of other ops on {}: {}", on, why);
}

}  // namespace weft
