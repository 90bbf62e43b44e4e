// The figures of a benchmark, as text and as JSON {meta, ceilings, rows}, and next to those of other implementations (peers),
// whose files use the same names and keys.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace weft {

using BenchJson = nlohmann::ordered_json;

// The least that the computation of a row must do: inputs read once, outputs written once, nothing stored in between.
struct Work {
  double bytes = 0, flops = 0, exps = 0;
  bool in_turn = false;  // bytes and operations are those of different kernels, so that their times add up
  friend Work operator+(const Work& a, const Work& b) {
    return {a.bytes + b.bytes, a.flops + b.flops, a.exps + b.exps, a.in_turn || b.in_turn};
  }
};

struct RowName {
  std::string group, op, shape, phase, impl = "weft";
  std::string peer = {};  // what `against` compares with: peers whose impl begins with this
};

class BenchReport {
 public:
  // Rows are also written to `file` as they come ("": to none). An existing file is merged into: its rows of the same names are
  // replaced. Errors: io.
  explicit BenchReport(std::filesystem::path file);

  BenchJson meta = BenchJson::object();
  BenchJson ceilings = BenchJson::object();  // copy_gbps, bf16_tflops, sfu_gops: rates that floors are computed with

  // ms and what follows from it: rates, the floor (the larger of the times that the bytes and the operations need at the
  // ceilings), what bounds it, the distance; then the keys of `extra`. Prints the row.
  void add(const RowName& name, double ms, const Work& work, const BenchJson& extra = {});
  void add_note(const RowName& name, const std::string& note);  // a row without a time, and the reason
  void save() const;

  // Each row of this run next to the fastest row of the files with the same name. Layouts of one shape (cf, cl) count as the
  // same; an op "a + b" that no peer has is compared with the sum of the two.
  void print_against(const std::vector<std::string>& files) const;

 private:
  void append(BenchJson row, const RowName& name);

  std::filesystem::path json_;
  BenchJson old_;  // what the file held
  std::vector<BenchJson> rows_;
  std::vector<RowName> names_;
};

}  // namespace weft
