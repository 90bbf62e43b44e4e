#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>

#include "jit/file.h"
#include "jit/print.h"
#include "jit/ranks/ranks.h"
#include "tools/cli/commands.h"
#include "tools/data/strided.h"
#include "tools/evaluate/eval.h"

namespace weft {
namespace {

int eval_text(const EvalCommand& c) {
  Ranks* const ranks = Ranks::join();  // who evaluate together: each has a part of every batch
  if (ranks && ranks->rank() > 0) mute(true);
  TextModel lm = open_model(c.model);
  BatchOptions options = c.options;
  constexpr std::int64_t kWindow = 1024;
  if (options.length == 0) options.length = std::min(kWindow, lm.model->context().value_or(kWindow));
  if (ranks) options.part = ranks->rank(), options.parts = ranks->size();
  const TokenStream text = open_to_evaluate(c.data, c.part, lm.tokenizer, options);
  const std::int64_t length = text.options().length, stride = c.stride > 0 ? std::min(c.stride, length) : length;
  const Evaluation e = evaluate(*lm.model, StridedWindows(text, stride), 0, true);
  const bool counted = e.characters > 0;  // the tokenizer gives the text back
  const std::string size = counted ? fmt::format(", {} characters, {} bytes", e.characters, e.bytes) : "";
  const std::string bits =
      counted ? fmt::format(", {:.4f} bits per character, {:.4f} bits per byte", e.bits_per_character(), e.bits_per_byte())
              : "";
  print("{}: {} tokens ({}){}, in windows of {} tokens{}\n", text.name(), e.tokens, lm.tokenizer.name(), size, length,
        stride < length ? fmt::format(", stride {}", stride) : "");
  if (e.causal)
    print("loss {:.4f} a token, perplexity {:.4f}{}, accuracy {:.4f}\n", e.loss(), e.perplexity(), bits, e.accuracy());
  else
    print("loss {:.4f} a token, not causal: the mixers read tokens in another order, so this is no perplexity\n", e.loss());
  if (ranks) ranks->leave();
  return 0;
}

int eval_tasks(const EvalCommand& c) {
  namespace fs = std::filesystem;
  std::vector<std::string> names = c.tasks;
  const bool all = std::ranges::find(names, "all") != names.end();
  if (all) names = benchmark_names();
  const bool folder = fs::is_directory(c.data);
  if (!c.data.empty() && !folder && names.size() > 1)
    fail(ErrorKind::usage, "eval: one file for several tasks", c.data,
         "give --data a folder with a file for each, or one --task");
  TextModel lm = open_model(c.model);
  BenchmarkOptions options = c.benchmark;
  options.length = c.options.length, options.stride = c.stride, options.batch = c.options.batch;
  nlohmann::json results = nlohmann::json::array();
  for (const std::string& name : names) {
    const Benchmark what = benchmark(name);
    std::optional<fs::path> file;
    if (folder) file = benchmark_file(c.data, what);
    if (!c.data.empty() && !folder) file = c.data;
    if (const auto reason = no_isolation();
        all && what == Benchmark::humaneval && reason && !options.sandbox.without_isolation) {
      print("{}: not run: programs cannot be isolated here ({}); --unsafe runs them all the same\n", name, *reason);
      continue;
    }
    const BenchmarkResult result = run_benchmark(lm, what, file, options);
    print("{}", to_text(result));
    results.push_back(to_json(result));
  }
  if (!c.json.empty()) {
    const std::string text = results.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    write_file(c.json, std::as_bytes(std::span(text)));
  }
  return 0;
}

}  // namespace

int cmd_eval(const EvalCommand& c) {
  if (!c.tasks.empty()) return eval_tasks(c);
  if (c.data.empty()) fail(ErrorKind::usage, "eval: there is nothing to evaluate", {}, "--data FILE, a text; or --task NAME");
  return eval_text(c);
}

}  // namespace weft
