#include "ops/labels.h"

#include <fmt/format.h>

#include <algorithm>

#include "jit/error.h"

namespace weft {

std::vector<std::int64_t> read_labels(const Launch& launch, const Operand& operand) {
  std::vector<std::int64_t> labels(std::size_t(operand.numel()));
  const View view = collapse(launch.view(operand));
  for (std::int64_t first = 0; first < std::int64_t(labels.size()); first += kBlock) {
    const int n = int(std::min<std::int64_t>(kBlock, std::int64_t(labels.size()) - first));
    const void* block = read_block<float>(view, ExprType::integer, first, n, labels.data() + first);
    if (block != labels.data() + first) std::copy_n(static_cast<const std::int64_t*>(block), n, labels.data() + first);
  }
  return labels;
}

void check_labels(std::string_view op, std::string_view name, const std::vector<std::int64_t>& labels, const Shape& shape,
                  std::int64_t vocabulary, const std::int64_t* ignored) {
  for (std::size_t i = 0; i < labels.size(); ++i) {
    const std::int64_t label = labels[i];
    if ((label >= 0 && label < vocabulary) || (ignored && label == *ignored)) continue;
    std::string position;  // "2, 17"
    std::int64_t rest = std::int64_t(i);
    for (int axis = shape.rank() - 1; axis >= 0; rest /= shape[axis], --axis)
      position = fmt::format("{}{}{}", rest % shape[axis], position.empty() ? "" : ", ", position);
    fail(ErrorKind::usage, fmt::format("{}: {} out of range", op, name),
         fmt::format("{} {} at position ({}) of {}, vocabulary {}", name, label, position, to_string(shape), vocabulary),
         ignored ? fmt::format("labels are in [0, {}), or {} to be ignored; is the vocabulary that of the tokenizer?",
                               vocabulary, *ignored)
                 : fmt::format("ids are in [0, {}); is the vocabulary that of the tokenizer?", vocabulary));
  }
}

}  // namespace weft
