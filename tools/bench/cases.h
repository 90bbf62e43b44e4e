// What `weft bench` measures: weft's ops, in the groups and on the shapes for which there are figures of other implementations.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "tools/bench/report.h"
#include "tools/bench/time.h"

namespace weft {

// A row as it is announced, before anything is measured.
struct BenchRow {
  RowName name;
  Work work;
  std::string note = {};
};

struct Measured {
  std::vector<double> ms;         // of each row of the case
  BenchJson extra = {};           // further keys of the last row
  std::optional<Work> work = {};  // of the last row, where it is known only then
};

// Rows that are measured together: forward, backward and both.
struct BenchCase {
  std::vector<BenchRow> rows;
  std::function<Measured(const TimeLimits&)> measure;
  bool for_gpu = false;  // too much for a CPU
};

// The group of the ceilings comes first, since the floors of all other rows follow from it. `smoke`: the same rows on tiny
// shapes.
const std::vector<std::string>& bench_groups();
std::vector<BenchCase> bench_cases(const std::string& group, bool smoke);

}  // namespace weft
