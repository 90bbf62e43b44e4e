// What the parts of the ssd op have in common: a call, checked, and its plain form.
#pragma once

#include <cstdint>

#include "autograd/hole.h"
#include "autograd/tensor.h"

namespace weft {

struct SsdCall {
  Tensor x, dt, A, B, C, D, initial;  // D and initial may be absent
  Tensor borders = {};                // (b, t) i32, may be absent: 1 where the state is cut
  Hole step, out;
  std::int64_t chunk;
  bool plain = false;  // no kernels of its own
  Site where;
  DType real() const;  // what is computed in: fp64 if an operand or what a hole captures is f64, else fp32
};

struct SsdResult {
  Tensor y, last;  // (b, t, h, p) in x's type; (b, h, p, n) in real()
};

// The contracts of the holes: dt(raw; b, t, h), out(s; b, t, h, p).
inline constexpr HoleSpec kSsdStep = {.name = "dt", .coordinates = "b t h", .values = 1, .dense = true, .names = {"raw"}};
inline constexpr HoleSpec kSsdOut = {.name = "out", .coordinates = "b t h p", .values = 1, .dense = true, .names = {"s"}};

// Whether the device in use has kernels of its own for heads of p features with n states where x, B and C are of a type; else
// the plain form is recorded.
bool ssd_has_kernels(std::int64_t p, std::int64_t n, DType dtype);

// Made of other ops: products of matrices within a chunk and between chunks (ssd_plain.cpp).
SsdResult plain_ssd(const SsdCall& call);

// The scan alone, of step sizes and decays that are known. x (b, t, h, p), step (b, t, h), B, C (b, t, g, n), initial
// (b, h, p, n) or absent; a (b, t, h) are the logarithms of the decays, far below zero where the state is cut. With
// S_t = e^{a_t} S_{t-1} + step_t x_t B_t^T it gives S_t C_t (b, t, h, p), in the type of sums, and the last state.
struct SsdScan {
  Tensor x, step, a, B, C, initial;
  std::int64_t chunk;
  Site where;
};
SsdResult plain_ssd_scan(const SsdScan& scan);  // of operands in one type
SsdResult cpu_ssd_scan(const SsdScan& scan);    // the CPU's loops (ssd_cpu.cpp)

}  // namespace weft
