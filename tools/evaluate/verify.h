// Compares a model with reference values that another implementation wrote into its folder (`weft verify`).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "jit/dtype.h"

namespace weft {

struct VerifyRow {
  std::string what;  // "gradient backbone.norm_f.weight"
  double error;      // as measured, in the unit of the tolerance
  double tolerance;
  std::string unit;                                   // "max |difference|", "of the largest entry", ...
  bool passed() const { return error <= tolerance; }  // false for NaN
};

// FOLDER has a model and reference.safetensors with input_ids (b, t) and logits (b, t, v) and, if they are to be checked:
// labels (b, t) and loss; grad.NAME; lrs, losses, grad_norms (steps) and step3.NAME; greedy (1, n). Tolerances: logits 1e-4,
// losses 1e-5, gradients 1e-4 of the largest entry, 99.9 % of the parameter entries after the steps within 1e-4, greedy tokens
// equal. bf16 means bf16 activations over fp32 weights: the logits to 2e-2 of the largest, the losses to 2e-2.
std::vector<VerifyRow> verify_model(const std::filesystem::path& folder, DType dtype = DType::f32);

}  // namespace weft
