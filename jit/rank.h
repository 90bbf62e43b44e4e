// How many axes a tensor has at most.
#pragma once

namespace weft {

inline constexpr int kMaxRank = 6;

}  // namespace weft
