// The subcommands of the weft program. main.cpp fills the options and calls; each returns the exit code of success or
// throws.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tools/trainer.h"

namespace weft {

struct TrainCommand {
  TrainOptions train;
  std::string data, out, resume, device = "auto", prompt = "\n";
  bool steps_given = false;         // on the command line: overrides those of a resumed run
  std::int64_t eval_every = 500;    // steps; 0: at the end only
  std::int64_t eval_batches = 100;  // of the validation part; 0: all
  std::int64_t sample = 500;        // bytes; 0: none
  double temperature = 0.7;
  std::int64_t top_k = 0;
  int threads = 0;  // 0: as OMP_NUM_THREADS says
};
int cmd_train(const TrainCommand& command);

struct VerifyCommand {
  std::string folder, device = "auto", dtype = "f32";
};
int cmd_verify(const VerifyCommand& command);

int cmd_doctor();

struct BenchCommand {
  std::string what = "all";  // "all", "interpreter", "host"
  std::string device = "auto";
};
int cmd_bench(const BenchCommand& command);

}  // namespace weft
