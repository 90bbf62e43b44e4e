#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_cross_entropies(std::vector<OpRow>& rows) {
  auto ce = [](auto& in) { return cross_entropy(in[0], in[1]); };
  rows.push_back({"cross_entropy",
                  ce,
                  [](const Inputs& in, const Shapes& s) {
                    double loss = 0, n = 0;
                    for (std::size_t r = 0; r < in[1].size(); ++r) {
                      if (in[1][r] == -100) continue;
                      const auto row = in[0].begin() + std::ptrdiff_t(r) * s[0][-1];
                      loss += lse_of({row, row + s[0][-1]}) - row[std::ptrdiff_t(in[1][r])];
                      n += 1;
                    }
                    return Values{n > 0 ? loss / n : 0};
                  },
                  {{"normal", {{{4, 8, 11}}, {{4, 8}, 0, 11, {}, DType::i64}}},
                   {"ignored", {{{5, 7}}, {{5}, 0, 0, {3, -100, 6, -100, 0}, DType::i64}}},
                   {"all_ignored", {{{3, 7}}, {{3}, 0, 0, {-100}, DType::i64}}},
                   {"one", {{{1, 1}}, {{1}, 0, 1, {}, DType::i32}}},
                   {"wide", {{{3, 700}}, {{3}, 0, 700, {}, DType::i64}}},
                   {"no_rows", {{{0, 7}}, {{0}, 0, 1, {}, DType::i64}}}}});
  rows.push_back({"cross_entropy_rows",
                  [](auto& in) {
                    return cross_entropy(in[0] * 1.5, in[1],
                                         {.ignore_index = 2, .label_smoothing = 0.1, .reduction = Reduction::none});
                  },
                  nullptr,
                  {{"odd", {{{3, 5, 7}}, {{3, 5}, 0, 7, {}, DType::i64}}}}});
  rows.push_back({"cross_entropy_sum",
                  [](auto& in) { return cross_entropy(in[0], in[1], {.reduction = Reduction::sum}); },
                  nullptr,
                  {{"odd", {{{5, 7}}, {{5}, 0, 7, {}, DType::i64}}}}});
}

}  // namespace weft
