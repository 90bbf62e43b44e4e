#include "tools/data/strided.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>
#include <vector>

#include "jit/error.h"

namespace weft {

StridedWindows::StridedWindows(TokenStream text, std::int64_t stride)
    : BatchSource(text.options()), text_(std::move(text)), stride_(stride) {
  if (stride < 1 || stride > options().length)
    fail(ErrorKind::usage, text_.name() + ": windows would leave tokens out",
         fmt::format("stride {}, length {}", stride, options().length), "a stride is at least 1 and at most the length");
  if (options().packed) fail(ErrorKind::usage, text_.name() + ": windows of packed documents do not overlap");
}

std::int64_t StridedWindows::windows() const {
  const std::int64_t rest = text_.validation_tokens().size() - 1 - options().length;
  return rest <= 0 ? 1 : 1 + (rest + stride_ - 1) / stride_;
}

std::int64_t StridedWindows::validation_batches() const { return (windows() + options().batch - 1) / options().batch; }

Batch StridedWindows::validation(std::int64_t index) const {
  const BatchOptions& o = options();
  if (index < 0 || index >= validation_batches())
    fail(ErrorKind::usage, "no such validation batch", fmt::format("{} of {}", index, validation_batches()));
  const Tokenizer& tokenizer = *text_.tokenizer();
  const Tokens& tokens = text_.validation_tokens();
  std::vector<std::int64_t> inputs(std::size_t(o.rows() * o.length), 0), targets(inputs.size(), kIgnored), window;
  Batch batch;
  for (std::int64_t row = 0; row < o.rows(); ++row) {
    const std::int64_t number = index * o.batch + o.first_row() + row, place = number * stride_;
    if (number >= windows()) break;
    window.resize(std::size_t(std::min(o.length + 1, tokens.size() - place)));
    tokens.copy(place, window);
    const std::size_t at = std::size_t(row * o.length), seen = number == 0 ? 0 : std::size_t(o.length - stride_);
    std::copy(window.begin(), window.end() - 1, inputs.begin() + std::ptrdiff_t(at));
    std::copy(window.begin() + std::ptrdiff_t(seen) + 1, window.end(), targets.begin() + std::ptrdiff_t(at + seen));
    count_targets(batch, tokenizer, window[seen], std::span(window).subspan(seen + 1));
  }
  batch.inputs = Tensor::from(inputs, {o.rows(), o.length});
  batch.targets = Tensor::from(targets, {o.rows(), o.length});
  return batch;
}

Batch StridedWindows::training(std::int64_t) const {
  fail(ErrorKind::usage, text_.name() + ": windows that overlap are for evaluation");
}

}  // namespace weft
