// The mixer of Mamba-2 by itself, as programs use it that are no language models. Shapes: b batch, t time, d width, h heads of
// p features, n state size.
#pragma once

#include <cstdint>
#include <string>

#include "models/mamba2.h"

namespace weft {

struct Mamba2BlockOptions {
  std::int64_t width = 0;   // d
  std::int64_t state = 64;  // n
  std::int64_t head = 64;   // p; expand d divides into heads
  std::int64_t groups = 1;  // of heads that share B and C
  std::int64_t expand = 2;
  std::int64_t conv = 4;  // taps
  bool plain = false;     // no kernels of its own, whether there are any or not
  bool say = true;        // a line on stderr, when it is made, that says which path is active
  DType dtype = DType::f32;
};

// x (b, t, d) -> y (b, t, d) and the states at the end, from which a next call may go on.
class Mamba2Block : public Module {
 public:
  struct Result {
    Tensor output;        // (b, t, d)
    Mamba2States states;  // ssm (b, h, p, n)
  };
  // Errors (ErrorKind::usage): sizes that make no sense.
  explicit Mamba2Block(const Mamba2BlockOptions& options, Site where = Site::current());
  Result operator()(Arg x, Mamba2States from = {});

  // The path that a call on the device in use takes: the kernels of ssd where they take the sizes, else, or where the options
  // say so, its plain form, which gives the same. `use` takes another one from now on.
  ScanPath path() const;
  void use(ScanPath path) { chosen_ = path; }
  std::string active_path() const;  // "Mamba2Block: fast path, ssd by its own loops on cpu; ..."
  const Mamba2Config& config() const { return config_; }

 private:
  Mamba2Config config_;
  Mamba2Mixer mixer_;
  ScanPath chosen_;  // fast: by itself
};

}  // namespace weft
