#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "jit/error.h"
#include "jit/file.h"
#include "jit/json.h"
#include "jit/print.h"
#include "tools/cli/commands.h"
#include "tools/inspect/inspect.h"
#include "tools/inspect/sass.h"
#include "tools/inspect/show.h"

namespace weft {
namespace {

void print_counts(std::string_view what, const SassCounts& c) {
  print("{}: {} instructions; {} multiply-adds, {} MUFU, {} tensor; global {} loads, {} stores; shared {}; local {}\n", what,
        c.instructions, c.fma, c.mufu, c.tensor, c.loads, c.stores, c.shared, c.local);
}

void print_sass(const KernelView& view) {
  for (const SassKernel& k : read_sass(view.compiled.cubin)) {
    print("{}: sm_{}, {} registers, {} bytes of stack, {} of shared memory\n", k.name, k.architecture, k.registers,
          k.stack_bytes, k.shared_bytes);
    print_counts("all", k.counts);
    if (const SassLoop* loop = k.hottest())
      print_counts(fmt::format("hottest loop of {}, [{:#06x}, {:#06x})", k.loops.size(), loop->begin, loop->end), loop->counts);
    for (const auto& [name, n] : k.counts.histogram) print("  {:12} {:6}\n", name, n);
  }
  if (const auto text = disassemble(view.compiled.cubin))
    print("\n{}", *text);
  else
    print("\n{}\n", disassembler_hint());
}

void write(const std::string& file, const std::string& text) {
  write_file(link_target(file), std::as_bytes(std::span(text)));
  print("{}\n", file);
}

void show_kernel(const InspectCommand& c, const KernelTable& table) {
  const KernelView& view = kernel_named(table, c.kernel);
  const bool text = c.source || c.ptx || c.sass || !c.diff.empty();
  if (!view.kernel && text)
    fail(ErrorKind::usage, fmt::format("inspect: {} is a product of cuBLASLt, which has no text", view.name), view.product);
  if (c.source) print("{}", view.kernel->text);
  if (c.ptx) print("{}", view.compiled.ptx);
  if (c.sass) print_sass(view);
  if (c.repro) print("{}", to_program(view, table.target));
  if (!c.diff.empty()) {
    const KernelView& other = kernel_named(table, c.diff);
    print("{}", line_difference(view.kernel->text, other.kernel ? other.kernel->text : ""));
  }
  if (c.why || (!text && !c.repro)) print("{}", to_why(view));
}

}  // namespace

int cmd_inspect(const InspectCommand& c) {
  if (c.kernel.empty() && (c.source || c.ptx || c.sass || c.why || c.repro || !c.diff.empty()))
    fail(ErrorKind::usage, "inspect: which kernel?", {}, "name one with --kernel; without options they are listed");
  if (!c.trace.empty() && c.options.device == "none")
    fail(ErrorKind::usage, "inspect: a trace needs the times of a GPU", {}, "add --device cuda");
  InspectOptions options = c.options;
  if (c.precision != "auto") options.bf16 = c.precision == "bf16";
  options.want_ptx = c.ptx || !c.html.empty();
  const KernelTable table = inspect_training_step(c.model, options);
  if (!c.kernel.empty()) {
    show_kernel(c, table);
  } else {
    print("{}, {}\n{}\n{}{}\n{}", table.title, table.target, table.cache, table.timing, table.timing.empty() ? "" : "\n",
          c.profile ? to_profile(table) : to_text(table));
  }
  if (!c.html.empty()) write(c.html, to_html(table));
  if (!c.json.empty()) write(c.json, text_of(to_json(table), 1) + "\n");
  if (!c.trace.empty()) write(c.trace, to_trace(table));
  return 0;
}

}  // namespace weft
