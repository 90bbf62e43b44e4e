// Which layers of a hybrid model use each other's keys and values (arXiv:2411.13676, section 2.3).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// A model's layers, a letter each: G has global attention, L local attention, in a window, and M is a Mamba layer without
// attention. What is global or local may have Mamba heads beside.
using LayerKinds = std::string;

// Layers that use the same keys and values. The first of each makes them.
using LayerGroups = std::vector<std::vector<std::int64_t>>;

// Runs of local layers, where Mamba layers between them do not count, are a group each, or with `most` > 0 groups of at most so
// many; a global layer is one by itself.
LayerGroups kv_sharing_groups(std::string_view kinds, std::int64_t most = 0);
// As the published models have it: of each run of local layers the first three, if it is odd, then pairs.
LayerGroups published_kv_groups(std::string_view kinds);

// For each layer the one whose keys and values it uses: itself, unless a group says otherwise. Errors (ErrorKind::usage): a
// group with a layer that does not exist, has no attention or is global while others share with it, layers that are not in
// order or in two groups.
std::vector<std::int64_t> kv_producers(std::string_view kinds, const LayerGroups& groups);

// Layers with attention for each set of keys and values; 1 if there are none.
double kv_reduction(std::string_view kinds, const std::vector<std::int64_t>& producers);

}  // namespace weft
