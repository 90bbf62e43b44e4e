// Ids and labels: integers that must lie in a vocabulary, checked before a kernel writes anything.
#pragma once

#include <string_view>
#include <vector>

#include "autograd/shape.h"
#include "jit/skeleton.h"

namespace weft {

// All elements of an integer operand, row-major.
std::vector<std::int64_t> read_labels(const Launch& launch, const Operand& operand);

// Throws ErrorKind::usage for the first label that is neither in [0, vocabulary) nor `*ignored`. `name` is "id" or
// "label", `shape` that of the labels.
void check_labels(std::string_view op, std::string_view name, const std::vector<std::int64_t>& labels, const Shape& shape,
                  std::int64_t vocabulary, const std::int64_t* ignored = nullptr);

}  // namespace weft
