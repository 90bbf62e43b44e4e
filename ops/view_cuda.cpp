// Views need no kernels; joining parts needs copies, which are pointwise.
#include "ops/cuda.h"
#include "ops/view.h"

namespace weft {
namespace {

Fused source(Expr root) {
  Fused fused;
  fused.roots = {root};
  fused.program = Program(fused.roots);
  return fused;
}

}  // namespace

Fused copy_of(const Operand& from, const Operand& to) {
  Fused fused = source(expr::input(0, expr_type(from.dtype)));
  fused.leaves = {broadcast_to(from, std::span(to.dims.data(), std::size_t(to.rank)))};
  return fused;
}

Fused zeros(DType dtype) {
  return source(is_real(dtype) ? expr::literal(0) : is_integer(dtype) ? Expr(0) : expr::boolean(false));
}

void cuda_concat(Lowering& l) {
  for (const auto& [from, to] : parts_to_write(l))
    l.emit_pointwise(from ? "concat_copy" : "concat_zero", from ? copy_of(from, to) : zeros(to.dtype), to);
}

}  // namespace weft
