// Gradients of holes as CUDA text, the same for every skeleton. The gradient of a hole takes the hole's value and an upstream
// gradient; its first root, the derivative by the value, goes back to the skeleton, the others are stored.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "jit/cuda_text.h"

namespace weft {

// The function NAME_gradients<V>(a, row, col, value, upstream, first): evaluates the roots of `fused` over the space `dims` and
// stores root r in outputs[r], where that is present; `first` receives the first root. Adds the arguments it needs to `text`.
std::string gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                           std::span<const std::int64_t> dims);

// Whether the first root, or one that is stored, needs the hole's value.
bool reads_value(const Fused& fused, std::span<const Operand> outputs);

}  // namespace weft
