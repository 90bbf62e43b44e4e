// What `weft bench` measures: the groups, ops, shapes and work of its peers' figures, on weft's ops.
#pragma once

#include <functional>
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
  std::vector<double> ms;  // of each row of the case
  BenchJson extra = {};    // keys of the last row
};

// Rows that are measured together: forward, backward and both.
struct BenchCase {
  std::vector<BenchRow> rows;
  std::function<Measured(const TimeLimits&)> measure;
};

// The ceilings first, whose figures floors need. `smoke`: the same rows on tiny shapes.
const std::vector<std::string>& bench_groups();
std::vector<BenchCase> bench_cases(const std::string& group, bool smoke);

}  // namespace weft
