#include <algorithm>

#include "ops/ops.h"
#include "tests/op_cases/families.h"
#include "tests/op_cases/reference.h"

namespace weft {

void add_products(std::vector<OpRow>& rows) {
  auto product = [](const Inputs& in, const Shapes& s) {  // (..., m, k) (..., k, n), equal batches or one of b
    const std::int64_t m = s[0][-2], k = s[0][-1], n = s[1][-1], batch = s[0].numel() / std::max<std::int64_t>(1, m * k);
    Values out;
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < m; ++i)
        for (std::int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (std::int64_t c = 0; c < k; ++c)
            sum += in[0][std::size_t((b * m + i) * k + c)] * in[1][std::size_t(((s[1].rank() > 2 ? b : 0) * k + c) * n + j)];
          out.push_back(sum);
        }
    return out;
  };
  rows.push_back({"matmul",
                  [](auto& in) { return matmul(in[0], in[1]); },
                  product,
                  {{"normal", {{{16, 32}}, {{32, 24}}}},
                   {"odd", {{{5, 7}}, {{7, 3}}}},
                   {"one", {{{1, 1}}, {{1, 1}}}},
                   {"batched", {{{3, 4, 5}}, {{3, 5, 2}}}},
                   {"broadcast", {{{3, 4, 5}}, {{5, 2}}}},
                   {"no_rows", {{{0, 5}}, {{5, 2}}}}},
                  {.f32 = 1e-4}});
  rows.push_back({"matmul_inner_0",
                  [](auto& in) { return matmul(in[0], in[1]); },
                  [](const Inputs&, const Shapes& s) { return Values(std::size_t(s[0][0] * s[1][1]), 0.0); },
                  {{"k0", {{{3, 0}}, {{0, 4}}}}}});
  rows.push_back({"matmul_transposed",
                  [](auto& in) { return matmul(transpose(in[0]), transpose(in[1])); },
                  nullptr,
                  {{"odd", {{{7, 5}}, {{3, 7}}}}, {"batched", {{{2, 7, 5}}, {{2, 3, 7}}}}}});
  rows.push_back({"matmul_sliced",
                  [](auto& in) { return matmul(slice(in[0], 1, 1, 4), slice(in[1], 0, 2, 5)); },
                  nullptr,
                  {{"odd", {{{7, 5}}, {{6, 3}}}}}});
  rows.push_back({"linear",
                  [](auto& in) { return linear(in[0], in[1], in[2]); },
                  [](const Inputs& in, const Shapes& s) {
                    const std::int64_t k = s[0][-1], n = s[1][0], m = s[0].numel() / std::max<std::int64_t>(1, k);
                    Values out;
                    for (std::int64_t i = 0; i < m; ++i)
                      for (std::int64_t j = 0; j < n; ++j) {
                        double sum = in[2][std::size_t(j)];
                        for (std::int64_t c = 0; c < k; ++c)
                          sum += in[0][std::size_t(i * k + c)] * in[1][std::size_t(j * k + c)];
                        out.push_back(sum);
                      }
                    return out;
                  },
                  {{"normal", {{{2, 8, 16}}, {{24, 16}}, {{24}}}},
                   {"odd", {{{3, 5}}, {{7, 5}}, {{7}}}},
                   {"vector", {{{5}}, {{7, 5}}, {{7}}}},
                   {"empty", {{{0, 5}}, {{7, 5}}, {{7}}}}},
                  {.f32 = 1e-4}});
}

}  // namespace weft
