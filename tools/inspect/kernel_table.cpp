#include "tools/inspect/kernel_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

#include "jit/error.h"

namespace weft {

KernelTable kernel_table(std::string title, std::string target, const std::vector<KernelView>& launches) {
  std::vector<KernelView> kernels;
  std::unordered_map<std::string, std::size_t> known;
  std::vector<std::size_t> found;
  std::vector<double> seconds;
  bool timed = false;
  for (const KernelView& v : launches) {
    const auto [at, is_new] = known.emplace(v.kernel ? v.name : v.name + v.product, kernels.size());
    found.push_back(at->second);
    seconds.push_back(v.seconds);
    timed |= v.seconds > 0;
    if (is_new) {
      kernels.push_back(v);
      continue;
    }
    KernelView& k = kernels[at->second];
    k.launches += v.launches, k.bytes += v.bytes, k.flops += v.flops, k.seconds += v.seconds;
  }
  std::vector<int> sorted(kernels.size()), rank(kernels.size());
  for (std::size_t i = 0; i < sorted.size(); ++i) sorted[i] = int(i);
  const auto weight = [&](int k) { return timed ? kernels[std::size_t(k)].seconds : kernels[std::size_t(k)].bytes; };
  std::stable_sort(sorted.begin(), sorted.end(), [&](int a, int b) { return weight(a) > weight(b); });
  KernelTable table{std::move(title), std::move(target), {}, {}, timed ? seconds : std::vector<double>{}};
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    rank[std::size_t(sorted[i])] = int(i);
    table.kernels.push_back(std::move(kernels[std::size_t(sorted[i])]));
  }
  for (const std::size_t i : found) table.order.push_back(rank[i]);
  return table;
}

const KernelView& kernel_named(const KernelTable& table, std::string_view name) {
  std::vector<const KernelView*> begin_so, words;
  std::vector<std::string> names;
  for (const KernelView& k : table.kernels) {
    if (k.name == name) return k;
    if (k.name.starts_with(name)) begin_so.push_back(&k);
    if (k.name.starts_with(fmt::format("{}__", name))) words.push_back(&k);
    names.push_back(k.name);
  }
  if (words.size() == 1) return *words[0];
  if (begin_so.size() == 1) return *begin_so[0];
  if (begin_so.empty())
    fail(ErrorKind::usage, fmt::format("no kernel is named '{}'{}", name, suggestion(name, names)), {},
         "weft inspect lists them");
  names.clear();
  for (const KernelView* k : begin_so) names.push_back(k->name);
  fail(ErrorKind::usage, fmt::format("several kernels begin with '{}'", name), fmt::format("{}", fmt::join(names, ", ")),
       "give one of these names");
}

}  // namespace weft
