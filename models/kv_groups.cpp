#include "models/kv_groups.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "jit/error.h"

namespace weft {
namespace {

// The runs of local layers between global ones, which are runs of their own.
LayerGroups attention_runs(std::string_view kinds) {
  LayerGroups runs;
  bool open = false;
  for (std::size_t l = 0; l < kinds.size(); ++l) {
    if (kinds[l] == 'M') continue;
    if (kinds[l] == 'L' && open)
      runs.back().push_back(std::int64_t(l));
    else
      runs.push_back({std::int64_t(l)});
    open = kinds[l] == 'L';
  }
  return runs;
}

// Appends the run to `groups` in parts of `most` layers, the first one of `first`.
void append_parts(LayerGroups& groups, const std::vector<std::int64_t>& run, std::size_t first, std::size_t most) {
  for (std::size_t begin = 0, size = first; begin < run.size(); begin += size, size = most)
    groups.emplace_back(run.begin() + std::ptrdiff_t(begin), run.begin() + std::ptrdiff_t(std::min(begin + size, run.size())));
}

[[noreturn]] void fail_group(const char* what, const std::vector<std::int64_t>& group, std::string_view kinds) {
  fail(ErrorKind::usage, fmt::format("layers that share keys and values: {}", what),
       fmt::format("group [{}], layers {}", fmt::join(group, ", "), kinds),
       "a group is a list of local layers (L) in their order; layers count from 0");
}

}  // namespace

LayerGroups kv_sharing_groups(std::string_view kinds, std::int64_t most) {
  LayerGroups groups;
  for (const auto& run : attention_runs(kinds)) {
    const std::size_t size = most > 0 ? std::size_t(most) : run.size();
    append_parts(groups, run, size, size);
  }
  return groups;
}

LayerGroups published_kv_groups(std::string_view kinds) {
  LayerGroups groups;
  for (const auto& run : attention_runs(kinds)) append_parts(groups, run, 2 + run.size() % 2, 2);
  return groups;
}

std::vector<std::int64_t> kv_producers(std::string_view kinds, const LayerGroups& groups) {
  const auto layers = std::int64_t(kinds.size());
  std::vector<std::int64_t> producers(kinds.size());
  std::iota(producers.begin(), producers.end(), 0);
  std::vector<bool> taken(kinds.size());
  for (const auto& group : groups) {
    if (!std::is_sorted(group.begin(), group.end())) fail_group("they are not in order", group, kinds);
    for (const std::int64_t l : group) {
      if (l < 0 || l >= layers) fail_group("there is no such layer", group, kinds);
      const char kind = kinds[std::size_t(l)];
      if (kind == 'M') fail_group("one has no attention", group, kinds);
      if (kind == 'G' && group.size() > 1) fail_group("one is global", group, kinds);
      if (taken[std::size_t(l)]) fail_group("one is there twice", group, kinds);
      taken[std::size_t(l)] = true;
      producers[std::size_t(l)] = group.front();
    }
  }
  return producers;
}

double kv_reduction(std::string_view kinds, const std::vector<std::int64_t>& producers) {
  double attention = 0, caches = 0;
  for (std::size_t l = 0; l < kinds.size(); ++l)
    if (kinds[l] != 'M') attention += 1, caches += producers[l] == std::int64_t(l);
  return attention > 0 ? attention / caches : 1;
}

}  // namespace weft
