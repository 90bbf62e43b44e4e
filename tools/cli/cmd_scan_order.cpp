#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "jit/file.h"
#include "jit/print.h"
#include "nn/npy.h"
#include "tools/cli/commands.h"
#include "tools/system/folder.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char *kStatesFile = "hidden_states.npy", *kOrderFile = "scan_order.npy", *kInverseFile = "scan_order_inv.npy";

void write_words(const fs::path& file, const std::string& text) { write_file(file, std::as_bytes(std::span(text))); }

HostTensor extract(TextModel& lm, const ScanOrderCommand& c) {
  const std::vector<std::string> texts = sample_texts(load_corpus(c.data), c.texts);
  HostTensor states = extract_hidden_states(*lm.model, lm.tokenizer, texts, c.tokens);
  print("hidden states of the last mixer: {} tokens of {} texts, {} features, {} bytes\n", states.shape[0], texts.size(),
        states.shape[1], states.bytes.size());
  return states;
}

void write_order(const fs::path& folder, const ScanOrder& order) {
  write_scan_order(folder / kOrderFile, order.order);
  write_scan_order(folder / kInverseFile, order.inverse);
}

SquareMatrix read_costs(const fs::path& file) {
  const HostTensor tensor = read_npy(file);
  if (!is_real(tensor.dtype) || tensor.shape.size() != 2 || tensor.shape[0] != tensor.shape[1] || tensor.shape[0] < 1)
    fail(ErrorKind::io, file.string() + ": not costs, which are reals (n, n)",
         fmt::format("{} {}", name_of(tensor.dtype), dims_text(tensor.shape)));
  return {tensor.shape[0], tensor.values<double>()};
}

void save_model(const TextModel& lm, const fs::path& out) {
  write_folder(out, [&](const fs::path& folder) {
    lm.model->save(folder);
    if (!lm.tokenizer.is_bytes()) lm.tokenizer.save(folder / "tokenizer.model");
  });
  print("saved: {}\n", out.string());
}

void report(TextModel& lm, const ScanOrderCommand& c, const std::vector<std::int64_t>& order, const ScanOrder* computed,
            const fs::path& folder) {
  ScanReportOptions options = c.report;
  if (!c.prompts.empty()) options.prompts = c.prompts;
  const BatchOptions batches{.batch = 4, .length = std::min<std::int64_t>(256, lm.model->context().value_or(256))};
  const TokenStream text = open_to_evaluate(c.data, "all", lm.tokenizer, batches);
  const ScanReport result = report_scan_order(*lm.model, lm.tokenizer, text, order, scan_mode(c.mode), options);
  const std::string page = to_markdown(result, options, lm.model->description(), text.name(), computed);
  write_words(folder / "scan_report.md", page);
  write_words(folder / "scan_report.json",
              to_json(result, computed).dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
  print("{}", page);
}

}  // namespace

int cmd_scan_order_extract(const ScanOrderCommand& c) {
  TextModel lm = open_model(c.model);
  write_npy(c.out, extract(lm, c));
  print("saved: {}\n", c.out);
  return 0;
}

int cmd_scan_order_compute(const ScanOrderCommand& c) {
  const ScanMode mode = scan_mode(c.mode);
  if (c.states.empty() == c.costs.empty())
    fail(ErrorKind::usage, "scan-order compute: give either hidden states or costs", {}, "--states FILE or --costs FILE");
  const ScanOrder order = c.costs.empty() ? compute_scan_order(read_npy(c.states), mode, c.items, c.states)
                                          : shortest_order(read_costs(c.costs), mode);
  write_folder(c.out, [&](const fs::path& folder) { write_order(folder, order); });
  print("{}saved: {}, {}\n", to_text(order), (fs::path(c.out) / kOrderFile).string(),
        (fs::path(c.out) / kInverseFile).string());
  return 0;
}

int cmd_scan_order_apply(const ScanOrderCommand& c) {
  const std::vector<std::int64_t> order = read_scan_order(c.order);
  TextModel lm = open_model(c.model);
  apply_scan_patch(*lm.model, order, scan_mode(c.mode));
  print("{}\n", to_text(get_permutation_info(*lm.model)));
  save_model(lm, c.out);
  return 0;
}

int cmd_scan_order_remove(const ScanOrderCommand& c) {
  TextModel lm = open_model(c.model);
  remove_scan_patch(*lm.model);
  save_model(lm, c.out);
  return 0;
}

int cmd_scan_order_report(const ScanOrderCommand& c) {
  const std::vector<std::int64_t> order = read_scan_order(c.order);
  TextModel lm = open_model(c.model);
  write_folder(c.out, [&](const fs::path& folder) { report(lm, c, order, nullptr, folder); });
  print("saved: {}\n", c.out);
  return 0;
}

int cmd_scan_order_run(const ScanOrderCommand& c) {
  const ScanMode mode = scan_mode(c.mode);
  TextModel lm = open_model(c.model);
  write_folder(c.out, [&](const fs::path& folder) {
    const HostTensor states = extract(lm, c);
    write_npy(folder / kStatesFile, states);
    const ScanOrder order = compute_scan_order(states, mode, c.items, kStatesFile);
    write_order(folder, order);
    report(lm, c, order.order, &order, folder);
  });
  print("saved: {}\n", c.out);
  return 0;
}

}  // namespace weft
