// What the parts of the ssd op have in common: a call, checked, and its plain form.
#pragma once

#include <cstdint>

#include "autograd/hole.h"
#include "autograd/tensor.h"

namespace weft {

struct SsdCall {
  Tensor x, dt, A, B, C, D, initial;  // D and initial may be absent
  Hole step, out;
  std::int64_t chunk;
  Site where;
  DType real() const;  // what is computed in: fp64 if an operand or what a hole captures is f64, else fp32
};

struct SsdResult {
  Tensor y, last;  // (b, t, h, p) in x's type; (b, h, p, n) in real()
};

// The contracts of the holes: dt(raw; b, t, h), out(s; b, t, h, p).
inline constexpr HoleSpec kSsdStep = {.name = "dt", .coordinates = "b t h", .values = 1, .dense = true, .names = {"raw"}};
inline constexpr HoleSpec kSsdOut = {.name = "out", .coordinates = "b t h p", .values = 1, .dense = true, .names = {"s"}};

// Made of other ops: products of matrices within a chunk and between chunks (ssd_plain.cpp).
SsdResult plain_ssd(const SsdCall& call);

}  // namespace weft
