#include "tests/op_cases.h"

#include "tests/op_cases/families.h"

namespace weft {

const std::vector<OpRow>& op_rows() {
  static const std::vector<OpRow> rows = [] {
    std::vector<OpRow> all;
    for (const auto add :
         {add_pointwise, add_views, add_reductions, add_norms, add_products, add_embeddings, add_cross_entropies,
          add_convolutions, add_scans, add_ssds, add_attentions, add_custom_kernels, add_random})
      add(all);
    return all;
  }();
  return rows;
}

}  // namespace weft
