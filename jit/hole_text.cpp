#include "jit/hole_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace weft {

std::string gradients_text(CudaText& text, std::string_view name, const Fused& fused, std::span<const Operand> outputs,
                           std::span<const std::int64_t> dims) {
  const std::string roots = fmt::format("{}_roots", name);
  text.fused(roots, fused, dims);
  std::string body, arguments, stores;
  for (std::size_t r = 0; r < outputs.size(); ++r) {
    const std::string y = r == 0 ? "first" : fmt::format("y{}", r), to = fmt::format("{}_to{}", name, r);
    arguments += ", " + y;
    if (r > 0) body += fmt::format("  real {}[V];\n", y);
    if (!outputs[r]) continue;
    text.rows(to, outputs[r]);
    stores += fmt::format("  store_real<V>(a.{0} + (row * index(a.{0}_row) + col), {1});\n", to, y);
  }
  body += fmt::format("  {}<V>(a, row, col, value, upstream{});\n", roots, arguments);
  return fmt::format(
      "template <int V>\nDEVICE void {}_gradients(const Args& a, index row, index col, const real (&value)[V], "
      "const real (&upstream)[V], real (&first)[V]) {{\n{}{}}}\n",
      name, body, stores);
}

bool reads_value(const Fused& fused, std::span<const Operand> outputs) {
  std::vector<Expr> roots;
  for (std::size_t r = 0; r < fused.roots.size(); ++r)
    if (r == 0 || outputs[r]) roots.push_back(fused.roots[r]);
  const std::vector<Expr> all = topological(roots);
  return std::any_of(all.begin(), all.end(), [](Expr e) { return e.op() == ExprOp::input && e.index() == 0; });
}

}  // namespace weft
