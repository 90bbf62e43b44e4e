#pragma once

namespace weft {

// While one lives, the modules of this thread do not draw values: their parameters are the zeros that States begin with, for
// which no memory is taken. For steps that are planned and never run (plan_for).
class Undrawn {
 public:
  Undrawn();
  ~Undrawn();
  Undrawn(const Undrawn&) = delete;
  Undrawn& operator=(const Undrawn&) = delete;

 private:
  bool before_;
};

}  // namespace weft
